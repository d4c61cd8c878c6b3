"""One run at a time writes to a folder; of one run, one process, or its shards."""

# pyright: strict
from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from topkit.errors import InputError

LOCK = ".lock"
# Who begins or ends, one at a time, where several write; and each of those by itself.
TURN, OWN = f"{LOCK}-turn", f"{LOCK}-shard-"


class Hold:
    """A folder that is this process's alone."""

    # Whether nobody else writes there, for as long as `begun` was not called.
    alone = True

    def begun(self) -> None:
        """Let other writers of the same run begin."""

    def last(self) -> bool:
        """Whether nobody else writes there any more; nobody begins after it."""
        return True


class _Shared(Hold):
    """A folder that others of the same run may write to."""

    def __init__(self, out: Path, lock: IO[str], turn: IO[str], of: str) -> None:
        self.out, self._lock, self._turn = out, lock, turn
        self.alone = _taken(lock, fcntl.LOCK_EX)
        if self.alone:
            lock.truncate(0)
            lock.write(of)
            lock.flush()
        else:
            self._join()
            lock.seek(0)
            if lock.read() != of:
                raise InputError(
                    f"shards of another command (other tasks, cells or number of shards) are writing to "
                    f"{out}; wait for their end, or use another folder"
                )

    def begun(self) -> None:
        if self.alone:
            self._join()
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def last(self) -> bool:
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        return _taken(self._lock, fcntl.LOCK_EX)

    def _join(self) -> None:
        if not _taken(self._lock, fcntl.LOCK_SH):
            raise _busy(self.out)


@contextmanager
def locked(out: Path, waits: bool = False) -> Generator[Hold]:
    """Keep a folder to this process, and make it where there is none; one left empty goes again.

    waits: for the end of another process that has the lock. The kernel releases the lock however this
    process ends; the file that stays means nothing.
    Raises: InputError when another process has the lock, or the folder cannot be made.
    """
    made, new = _made(out), not (out / LOCK).exists()
    with _opened(out, LOCK) as lock:
        # A file that is no longer at its path was just removed by the writer that left.
        if waits:
            _flock(lock, fcntl.LOCK_EX)
        if not _taken(lock, fcntl.LOCK_EX) or not _stands(out / LOCK, lock):
            raise _busy(out)
        try:
            yield Hold()
        except BaseException:
            # A folder that was renamed is not here to be tidied up.
            if new and _stands(out / LOCK, lock):
                _tidy(out, made)
            raise


@contextmanager
def shared(out: Path, writer: str, of: str) -> Generator[Hold]:
    """Share a folder with the other writers of one run; each begins and ends when no other one does.

    writer: its name among them; of: a text that all of them have, and others have not.
    Raises: InputError when another run writes there, or this very writer.
    """
    made, new = _made(out), not (out / LOCK).exists()
    with _waited(out) as turn, _of_one(out, writer), _opened(out, LOCK) as lock:
        hold = _Shared(out, lock, turn, of)
        try:
            yield hold
        except BaseException:
            if hold.last() and new and _stands(out / LOCK, lock):
                _tidy(out, made)
            raise


@contextmanager
def _of_one(out: Path, writer: str) -> Generator[None]:
    """The lock of one writer, whose file goes with it."""
    with _opened(out, f"{OWN}{writer}") as own:
        if not _taken(own, fcntl.LOCK_EX):
            raise InputError(
                f"another process writes the same shard to {out}; wait for its end, or name another shard"
            )
        try:
            yield
        finally:
            Path(own.name).unlink(missing_ok=True)


@contextmanager
def by_turns(out: Path) -> Generator[None]:
    """One at a time of those that share a folder."""
    with _waited(out):
        yield


@contextmanager
def _waited(out: Path) -> Generator[IO[str]]:
    while True:
        with _opened(out, TURN) as turn:
            _flock(turn, fcntl.LOCK_EX)
            if _stands(out / TURN, turn):
                yield turn
                return


def _made(out: Path) -> list[Path]:
    """Make a folder where there is none; returns the folders that were made."""
    absent = [path for path in (out, *out.parents) if not path.exists()]
    with _written(out):
        out.mkdir(parents=True, exist_ok=True)
    return absent


def _opened(out: Path, name: str) -> IO[str]:
    with _written(out):
        return open(out / name, "a+")


@contextmanager
def _written(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error


def _taken(lock: IO[str], how: int) -> bool:
    try:
        _flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(lock: IO[str], how: int) -> None:
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot lock {lock.name}: {error.strerror}; use a folder on a file system that has locks"
        ) from error


def _tidy(out: Path, made: list[Path]) -> None:
    """Remove the folders that were made, where nothing but locks is in them."""
    with suppress(OSError):
        locks = [out / name for name in os.listdir(out) if name.startswith(LOCK)]
        if len(locks) == len(os.listdir(out)) or not made:
            for lock in locks:
                lock.unlink()
        for path in made:
            path.rmdir()


def _busy(out: Path) -> InputError:
    return InputError(f"another run is writing to {out}; wait for its end, or use another folder")


def _stands(path: Path, file: IO[str]) -> bool:
    """Whether an open file still stands at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False
