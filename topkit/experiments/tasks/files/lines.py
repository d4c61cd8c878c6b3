"""Rows of a task file: JSON lines, gzipped or not, or one JSON list; a plain file's are read one at a time."""

# pyright: strict
from __future__ import annotations

import gzip
import os
import stat
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from topkit.documents import Schema, check, parse_json, read_bytes
from topkit.documents.digest import file_digest
from topkit.errors import InputError

# A longer line, or more of a gzipped file, is no task's, and would fill the machine's memory.
MOST_LINE = 1 << 28
MOST_UNPACKED = 1 << 30


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a file: their places as people count them, and where they stand.

    kept: the rows themselves, of a list or a gzipped file; spans: (first byte, bytes) in a plain file.
    """

    path: Path
    places: tuple[str, ...]
    kept: tuple[Any, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def row(self, number: int, schema: Schema, remedy: str) -> dict[str, Any]:
        """A row that fits a schema. Raises: InputError naming file, line and field."""
        source = f"{self.path}, {self.places[number]}"
        if self.spans:
            first, size = self.spans[number]
            with open(self.path, "rb") as file:
                file.seek(first)
                return parse_json(file.read(size), schema, source, remedy)
        if isinstance(row := self.kept[number], bytes):
            return parse_json(row, schema, source, remedy)
        check(row, schema, source, remedy)
        return row


def rows_of(path: str | Path, remedy: str) -> Rows:
    """The rows of a file, as it is now.

    Raises: InputError for what cannot be read, holds no rows, or has a line too long for any task.
    """
    path = Path(path)
    about = _about(path, remedy)
    try:
        return _rows(path.absolute(), path, remedy, about.st_mtime_ns, about.st_size, about.st_ino)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        why = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise InputError(f"cannot read {_shown(path)}: {why}; {remedy}") from error


def digest_of(path: str | Path, remedy: str) -> str:
    """The first digits of the hash of a file's content: enough to tell files apart in a table.

    Raises: InputError for what cannot be read.
    """
    _about(Path(path), remedy)
    return file_digest(Path(path))[:6]


def _shown(path: Path) -> str:
    """A path as an error shows it: of a long one the end, which has the file's name."""
    text = str(path)
    return text if len(text) <= 160 else f"...{text[-120:]}"


def _about(path: Path, remedy: str) -> os.stat_result:
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {_shown(path)}: {why}; {remedy}") from error
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path} is no plain file; {remedy}")
    return about


@lru_cache(maxsize=16)
def _rows(whole: Path, path: Path, remedy: str, *_stat: int) -> Rows:
    packed = path.suffix == ".gz"
    with gzip.open(whole) if packed else open(whole, "rb") as opened:
        file = cast(BinaryIO, opened)
        first = file.read(64).lstrip()[:1]
        file.seek(0)
        if first == b"[":
            rows = _list(path, _unpacked(file, path, remedy) if packed else b"", remedy)
        else:
            rows = _lines(path, file, remedy, packed)
    if not len(rows):
        raise InputError(f"{path} holds no rows; {remedy}")
    return rows


def _list(path: Path, content: bytes, remedy: str) -> Rows:
    kept: list[Any] = parse_json(content or read_bytes(path, remedy), [dict], path, remedy)
    return Rows(path, tuple(f"item {n}" for n in range(1, len(kept) + 1)), tuple(kept))


def _lines(path: Path, file: BinaryIO, remedy: str, packed: bool) -> Rows:
    places, kept, spans, number, at = list[str](), list[bytes](), list[tuple[int, int]](), 0, 0
    while line := file.readline(MOST_LINE + 1):
        number += 1
        if len(line) > MOST_LINE:
            raise InputError(
                f"{path}, line {number} has more than {MOST_LINE:,} bytes, which is no row; {remedy}"
            )
        if line.strip():
            places.append(f"line {number}")
            if packed:
                kept.append(line)
            else:
                spans.append((at, len(line)))
        at += len(line)
        if packed and at > MOST_UNPACKED:
            raise InputError(f"{path} unpacks to more than {MOST_UNPACKED:,} bytes; {remedy}")
    return Rows(path, tuple(places), tuple(kept), tuple(spans))


def _unpacked(file: BinaryIO, path: Path, remedy: str) -> bytes:
    content = file.read(MOST_UNPACKED + 1)
    if len(content) > MOST_UNPACKED:
        raise InputError(f"{path} unpacks to more than {MOST_UNPACKED:,} bytes; {remedy}")
    return content
