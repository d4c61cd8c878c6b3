"""One process at a time writes to a folder."""

# pyright: strict
from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from topkit.errors import InputError

LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Generator[None]:
    """Keep a folder to this process, and make it where there is none; one left empty goes again.

    The kernel releases the lock however this process ends; the file that stays means nothing.
    Raises: InputError when another process has the lock, or the folder cannot be made.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]
    new = not (out / LOCK).exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(out) from None
        if not _stands(out / LOCK, lock.fileno()):
            raise _busy(out)  # its owner is just leaving, and takes the file along
        try:
            yield
        except BaseException:
            # A folder that was renamed is not here to be tidied up.
            if new and _stands(out / LOCK, lock.fileno()):
                _tidy(out, made)
            raise


def _tidy(out: Path, made: list[Path]) -> None:
    """Remove the folders that were made, where nothing but the lock is in them."""
    with suppress(OSError):
        if os.listdir(out) == [LOCK] or not made:
            (out / LOCK).unlink()
        for path in made:
            path.rmdir()


def _busy(out: Path) -> InputError:
    return InputError(f"another run is writing to {out}; wait for its end, or use another folder")


def _stands(path: Path, descriptor: int) -> bool:
    """Whether an open file still stands at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
