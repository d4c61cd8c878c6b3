"""Books as JSON lines (title, author, text), xz-compressed: read, and turned into tokens."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole

EXCERPT = Path(__file__).parents[2] / "data" / "excerpt.txt"


def books(corpus: Path | str | None, split: str) -> Iterator[dict]:
    """The books of a split, "train" or "valid"; without a corpus the excerpt that comes with topkit."""
    if corpus is None:
        yield {"title": EXCERPT.name, "author": "", "text": EXCERPT.read_text(encoding="utf-8")}
        return
    path = Path(corpus) / f"books-{split}.jsonl.xz"
    if not path.is_file():
        raise InputError(f"no {path.name} in {corpus}; give the folder that holds the books")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _save(values: np.ndarray, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, values)


@dataclass(frozen=True)
class Text:
    """Tokens of many books, end to end, and where sentences end."""

    tokens: np.ndarray
    ends: np.ndarray

    def save(self, folder: Path) -> None:
        # The ends last, and each whole: whoever finds them finds all.
        for name, values in (("tokens", self.tokens), ("ends", self.ends)):
            write_whole(folder / f"{name}.npy", partial(_save, values))

    @classmethod
    def load(cls, folder: Path) -> Text:
        return cls(
            np.load(folder / "tokens.npy", mmap_mode="r"),
            np.load(folder / "ends.npy", mmap_mode="r"),
        )


def tokenise(texts: Iterator[str], tokenizer: Tokenizer, batch: int = 64) -> Text:
    """All texts as one run of tokens; paragraphs are encoded apart, so that cores share the work."""
    runs: list[np.ndarray] = []
    stops = np.array(
        [bool(set(tokenizer.decode([i])) & set(".!?")) for i in range(tokenizer.get_vocab_size())]
    )
    waiting: list[str] = []

    def flush() -> None:
        encoded = tokenizer.encode_batch_fast(waiting, add_special_tokens=False)
        runs.extend(np.array(e.ids, dtype=np.uint16) for e in encoded)
        waiting.clear()

    for text in texts:
        # Whole paragraphs, so that no word is cut.
        waiting += [part + "\n\n" for part in text.split("\n\n") if part.strip()]
        if len(waiting) >= batch * 256:
            flush()
    flush()
    tokens = np.concatenate(runs)
    return Text(tokens, np.flatnonzero(stops[tokens]) + 1)
