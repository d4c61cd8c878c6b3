"""Books as JSON lines (title, author, text), xz-compressed: read, and turned into tokens."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from topkit.documents.digest import file_digest
from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.train.deadline import NEVER, Deadline

# Books whose tokens are made and kept at once: a second's work.
TEXTS = 4
# Beside tokens: which books they are of.
SOURCE = "books.json"
EXCERPT = Path(__file__).parents[2] / "data" / "excerpt.txt"


def books(corpus: Path | str | None, split: str) -> Iterator[dict]:
    """The books of a split, "train" or "valid"; without a corpus the excerpt that comes with topkit."""
    if corpus is None:
        yield {"title": EXCERPT.name, "author": "", "text": EXCERPT.read_text(encoding="utf-8")}
        return
    with lzma.open(require_books(corpus, split), "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def require_books(corpus: Path | str, split: str) -> Path:
    """The file of a split. Raises: InputError where it is not there."""
    path = Path(corpus) / f"books-{split}.jsonl.xz"
    if not path.is_file():
        raise InputError(f"no {path.name} in {corpus}; give the folder that holds the books")
    return path


def corpus_digest(corpus: Path | str | None) -> str:
    """The sha256 of the training books, or of the excerpt. Raises: as `require_books`."""
    return file_digest(EXCERPT if corpus is None else require_books(corpus, "train"))


def require_same_books(folder: Path, corpus: Path | str | None, most: int | None = None) -> None:
    """Note which books a folder's tokens are of, where none are.

    most: how many are read (None: all). Raises: InputError for a folder of other books, whose tokens would be taken
    for these.
    """
    made = {"sha256": corpus_digest(corpus), "books": most}
    path, text = folder / SOURCE, json.dumps(made) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"{folder} holds tokens of other books; choose another folder")
        return
    if any(folder.glob("*.npy")):
        raise InputError(
            f"{folder} does not say which books its tokens are of; choose another folder"
        )
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


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


def keep_tokens(
    texts: Iterator[str], tokenizer: Tokenizer, folder: Path, deadline: Deadline = NEVER
) -> bool:
    """Make the tokens of texts in a folder, where they are not there; whether all are, or time ran out before.

    What was made is kept, and a further call of the same texts goes on from there; each makes some at least.
    """
    if (folder / "ends.npy").exists():
        return True
    pieces, late = list[Path](), False
    while some := list(islice(texts, TEXTS)):
        piece = folder / f"piece-{len(pieces)}.npy"
        pieces.append(piece)
        if piece.exists():
            continue
        if late:
            return False
        write_whole(piece, partial(_save, tokenise(some, tokenizer)))
        late = deadline.passed
    tokens = np.concatenate([np.load(piece) for piece in pieces])
    Text(tokens, np.flatnonzero(_stops(tokenizer)[tokens]) + 1).save(folder)
    for piece in pieces:
        piece.unlink()
    return True


def tokenise(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """All texts as one run of tokens, uint16; paragraphs are encoded apart, so that cores share the work."""
    # Whole paragraphs, so that no word is cut.
    parts = [part + "\n\n" for text in texts for part in text.split("\n\n") if part.strip()]
    encoded = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
    none = np.array([], dtype=np.uint16)
    return np.concatenate([none, *(np.array(one.ids, dtype=np.uint16) for one in encoded)])


def _stops(tokenizer: Tokenizer) -> np.ndarray:
    """Whether a token ends a sentence, by its number."""
    words = (tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size()))
    return np.array([bool(set(word) & set(".!?")) for word in words])
