"""Figures as PNG: drawn here, or by a second process while this one draws the next as SVG."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Figures below which a process is not worth its start.
FEWEST = 8


def save(figure: Figure, path: Path, style: dict[Any, Any]) -> None:
    """Write a figure, drawn in a style, as PNG."""
    with matplotlib.rc_context(style):
        figure.savefig(path, dpi=160, metadata={"Software": None})


class Pictures:
    """PNGs that are written by the time the context of `pictures` ends."""

    def __init__(self, other: subprocess.Popen[bytes] | None) -> None:
        self._other = other
        self._sent: list[tuple[Figure, Path, dict[Any, Any]]] = []

    def add(self, figure: Figure, path: Path, style: dict[Any, Any]) -> None:
        """Have a figure written; it is not to be changed any more."""
        if self._other is None:
            save(figure, path, style)
            return
        self._sent.append((figure, path, style))
        # One that has died is seen by its exit code.
        with suppress(OSError):
            assert self._other.stdin is not None
            pickle.dump(self._sent[-1], self._other.stdin)

    def close(self) -> None:
        """Wait for the other process; draw here whatever it was that it could not."""
        if self._other is None:
            return
        self._other.communicate()
        if self._other.returncode:
            for figure, path, style in self._sent:
                save(figure, path, style)


@contextmanager
def pictures(count: int) -> Generator[Pictures]:
    """Where so many figures are saved as PNG: by a second process where there are many, and two cores."""
    several = count >= FEWEST and (os.cpu_count() or 1) > 1 and bool(sys.executable)
    other = _started() if several else None
    made = Pictures(other)
    try:
        yield made
        made.close()
    finally:
        if other is not None:
            other.kill()
            other.wait()


def _started() -> subprocess.Popen[bytes] | None:
    """A process that writes what comes to it; started by its command, since a script may have no main guard."""
    with suppress(OSError):
        return subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    return None


def _serve() -> None:
    with suppress(EOFError):
        while True:
            save(*pickle.load(sys.stdin.buffer))


if __name__ == "__main__":
    _serve()
