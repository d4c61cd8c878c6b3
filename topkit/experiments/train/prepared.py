"""The training mixture in a model's own tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from topkit.experiments.model.load import resolve
from topkit.experiments.runs.lock import by_turns
from topkit.experiments.train.corpus import books, keep_tokens, require_same_books
from topkit.experiments.train.deadline import NEVER, Deadline
from topkit.experiments.train.mixture import Mixture

# What sets these draws apart from those that the reference model was trained on.
_APART = 1000


def prepared(
    name: str,
    tokenizer: Any,
    corpus: Path | str | None,
    out: Path | str,
    seed: int,
    most: int | None = None,
    deadline: Deadline = NEVER,
) -> Mixture | None:
    """Books with facts and questions woven in, for the model `name`; its tokens are made once in out/text.

    Of several processes that ask for them, one makes them and the others wait.
    corpus: the folder of books-train.jsonl.xz, of which the first `most` are read (None: all). Returns None where
    time ran out; a further call goes on. Raises: InputError for a folder with tokens of other books.
    """
    text, file = Path(out) / "text", resolve(name) / "tokenizer.json"
    # A .gguf file holds its tokenizer itself.
    encoder = file.read_text() if file.is_file() else tokenizer.backend_tokenizer.to_str()
    text.mkdir(parents=True, exist_ok=True)
    with by_turns(text):
        require_same_books(text, corpus, most)
    if not (text / "ends.npy").exists():
        texts = (book["text"] for book in islice(books(corpus, "train"), most))
        with by_turns(text):
            whole = keep_tokens(texts, Tokenizer.from_str(encoder), text, deadline)
        if not whole or deadline.passed:
            return None
    return Mixture(text, encoder, seed + _APART)


def drawn(
    mixture: Mixture, numbers: range, rows: int, length: int, workers: int
) -> Iterator[Tensor]:
    """The batches of these numbers, token ids [rows, length], made ahead by other processes, if any."""
    plans = [(mixture, number, rows, length) for number in numbers]
    if workers < 2:
        yield from (torch.from_numpy(_batch(plan)) for plan in plans)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from (torch.from_numpy(ids) for ids in pool.imap(_batch, plans))


def _batch(plan: tuple[Mixture, int, int, int]) -> np.ndarray:
    mixture, number, rows, length = plan
    return mixture.batch(number, rows, length - 1)[0].astype(np.int64)


def weighted(
    mixture: Mixture, numbers: range, rows: int, length: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `drawn`, token ids [rows, length + 1] with the weight of predicting each."""
    plans = [(mixture, number, rows, length) for number in numbers]
    if workers < 2:
        yield from map(_weighted, plans)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_weighted, plans)


def _weighted(plan: tuple[Mixture, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    mixture, number, rows, length = plan
    return mixture.batch(number, rows, length)
