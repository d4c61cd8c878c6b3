"""The digest of a file, read once while the file is as it was."""

# pyright: strict
from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

# What changes when a file does: time, size, inode.
State = tuple[int, int, int]


def state_of(path: Path) -> State:
    """The state of a file, for caches of its content. Raises: OSError, ValueError."""
    stat = path.stat()
    # A file that another took the place of has another inode, however soon that was.
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes. Raises: OSError, ValueError."""
    return _digest(path.resolve(), state_of(path))


@lru_cache(maxsize=256)
def _digest(path: Path, _state: State) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
