"""The tokens of books: made some books at a time, stopped, and gone on with."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from topkit.errors import InputError
from topkit.experiments.model.source import REFERENCE
from topkit.experiments.train.corpus import (
    TEXTS,
    Text,
    books,
    keep_tokens,
    require_books,
    require_same_books,
)
from topkit.experiments.train.deadline import Deadline
from topkit.experiments.train.prepared import prepared
from topkit.experiments.train.recipe import Recipe
from topkit.experiments.train.reference_text import prepare

WORDS = ["a", "b", "c", ".", "?", "x."]
LATE = Deadline.within(0)


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return made


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=n)) + "\n\n \n\nb ." for n in range(count)]


def plainly(some: list[str]) -> tuple[list[int], list[int]]:
    """Word by word: tokens, and the places behind those that end a sentence."""
    words = [word for text in some for word in text.split()]
    ends = [n + 1 for n, word in enumerate(words) if "." in word or "?" in word]
    return [WORDS.index(word) for word in words], ends


@pytest.mark.parametrize("count", [1, TEXTS, 2 * TEXTS + 1])
def test_tokens_stop_and_go_on_to_the_same(tmp_path: Path, count: int) -> None:
    some, calls = texts(count), 0
    while not keep_tokens(iter(some), tokenizer(), tmp_path, LATE):
        calls += 1
        assert not (tmp_path / "ends.npy").exists()
    # Each call makes a piece; the last makes the last one.
    assert calls == -(-count // TEXTS) - 1
    made = Text.load(tmp_path)
    assert (made.tokens.tolist(), made.ends.tolist()) == plainly(some)
    assert made.tokens.dtype == np.uint16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ends.npy", "tokens.npy"]

    def unread() -> Iterator[str]:
        raise AssertionError
        yield ""

    assert keep_tokens(unread(), tokenizer(), tmp_path)


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for attempt in (lambda: require_books(tmp_path, "train"), lambda: list(books(tmp_path, "x"))):
        with pytest.raises(InputError, match="give the folder that holds the books"):
            attempt()


def corpus(folder: Path, *texts: str) -> Path:
    lines = [json.dumps({"title": "a", "author": "b", "text": text}) + "\n" for text in texts]
    folder.mkdir(exist_ok=True)
    with lzma.open(folder / "books-train.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(lines)
    return folder


def test_tokens_of_other_books_are_not_taken_for_these(tmp_path: Path) -> None:
    one, out = corpus(tmp_path / "one", "A book."), tmp_path / "out"
    again = corpus(tmp_path / "again", "A book.")
    for same in (one, one, again):
        require_same_books(out, same, 1)
    for books_of, most in ((corpus(tmp_path / "other", "Another."), 1), (one, None), (None, 1)):
        with pytest.raises(InputError, match=r"out holds tokens of other books; choose another"):
            require_same_books(out, books_of, most)
    # A file that another took the place of, under the same name.
    corpus(one, "Another.")
    with pytest.raises(InputError, match="holds tokens of other books"):
        require_same_books(out, one, 1)
    unnamed = tmp_path / "unnamed"
    unnamed.mkdir()
    np.save(unnamed / "tokens.npy", np.zeros(1))
    with pytest.raises(InputError, match="does not say which books its tokens are of"):
        require_same_books(unnamed, again)


def test_trainings_ask_whose_tokens_there_are(tmp_path: Path) -> None:
    one, other = (corpus(tmp_path / text[0], text) for text in ("A book.", "Other one."))
    assert prepared("reference", None, one, tmp_path / "out", 0) is not None
    assert prepared("reference", None, one, tmp_path / "out", 0) is not None
    with pytest.raises(InputError, match="holds tokens of other books"):
        prepared("reference", None, other, tmp_path / "out", 0)
    recipe = Recipe()
    prepare(one, tmp_path / "made", recipe, start_from=REFERENCE)
    with pytest.raises(InputError, match="holds tokens of other books"):
        prepare(other, tmp_path / "made", recipe, start_from=REFERENCE)
