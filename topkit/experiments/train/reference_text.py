"""What the reference model reads: the tokenizer and the tokens of the training books."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from topkit.experiments.runs.parts import write_whole
from topkit.experiments.tasks.request import random_for
from topkit.experiments.train.corpus import books, keep_tokens, require_same_books
from topkit.experiments.train.deadline import NEVER, Deadline
from topkit.experiments.train.recipe import Recipe
from topkit.experiments.train.tokenizer import save_tokenizer, train_tokenizer


def prepare(
    corpus: Path,
    out: Path,
    recipe: Recipe,
    start_from: Path | str | None = None,
    deadline: Deadline = NEVER,
) -> bool:
    """Make the tokenizer and the tokens of the training books, once, in `out`; whether they are there.

    Where time ran out before, a further call goes on. Raises: InputError for a folder with tokens of other books.
    """
    folder = out / "text"
    require_same_books(folder, corpus)
    if (folder / "ends.npy").exists():
        return True
    made = folder / "tokenizer.json"
    if not made.exists():
        tokenizer = _tokenizer(corpus, recipe, start_from)
        write_whole(made, lambda to: to.write_text(tokenizer.to_str(), encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(made))
    save_tokenizer(tokenizer, out / "model")
    texts = (book["text"] for book in books(corpus, "train"))
    return keep_tokens(texts, tokenizer, folder, deadline) and not deadline.passed


def _tokenizer(
    corpus: Path, recipe: Recipe, start_from: Path | str | None, sample: int = 40
) -> Tokenizer:
    """Learnt from some books and what tasks plant, or that of the model to start from."""
    if start_from is not None:
        return Tokenizer.from_file(str(Path(start_from) / "tokenizer.json"))
    texts = [book["text"][:150_000] for book in islice(books(corpus, "train"), sample)]
    rng = random_for("tokenizer", recipe.seed)
    return train_tokenizer([*texts, *examples(rng)], recipe.vocabulary)


def examples(rng: np.random.Generator) -> Iterator[str]:
    """Some of what tasks plant and ask, so that their words are short in tokens."""
    from topkit.experiments.tasks import TASKS
    from topkit.experiments.tasks.base import TRAINED

    for task in (t() for t in TASKS.values() if t.family == TRAINED and t.name != "books"):
        trained = [w for w, kind in task.wordings().items() if kind == TRAINED]
        for _ in range(20):
            planted = task.plant(rng, str(rng.choice(trained)))
            yield " ".join(planted.sentences) + "".join(
                q.text + q.answer for q in planted.questions
            )
