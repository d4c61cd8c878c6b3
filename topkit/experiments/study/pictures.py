"""Figures as SVG and PNG: drawn here, or by a second process while this one goes on."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import vl_convert as vlc

if TYPE_CHECKING:  # which imports Altair; the second process does without
    from topkit.experiments.study.drawing import Spec

# Figures below which a process is not worth its start.
FEWEST = 8
# Of so many one is left to this process, which has the page to write meanwhile.
_OF = 3
# Names stand on lines and bars: a white rim keeps them legible, as the page's style does there.
_TEXTS = '<g class="mark-text role-mark'
_HALO = '<g stroke="white" stroke-width="3" stroke-linejoin="round" paint-order="stroke"'


def save(spec: Spec, path: Path) -> None:
    """Write a figure in Vega as PATH.svg and PATH.png."""
    vector = vlc.vega_to_svg(spec).replace(_TEXTS, _HALO + _TEXTS[2:])
    # A name may hold dots.
    path.with_name(f"{path.name}.svg").write_text(vector, encoding="utf-8")
    path.with_name(f"{path.name}.png").write_bytes(vlc.svg_to_png(vector, scale=1.5))


class Pictures:
    """Figures that are written by the time the context of `pictures` ends."""

    def __init__(self, other: subprocess.Popen[bytes] | None) -> None:
        self._other = other
        self._sent: list[tuple[Spec, Path]] = []
        self._kept: list[tuple[Spec, Path]] = []

    def add(self, spec: Spec, path: Path) -> None:
        """Have a figure written."""
        if self._other is None:
            save(spec, path)
            return
        if len(self._sent) + 1 > (_OF - 1) * (len(self._kept) + 1):
            self._kept.append((spec, path))
            return
        self._sent.append((spec, path))
        # One that has died is seen by its exit code.
        with suppress(OSError):
            assert self._other.stdin is not None
            self._other.stdin.write(json.dumps([spec, str(path)]).encode() + b"\n")

    def close(self) -> None:
        """Wait for the other process; draw here whatever it was that it could not."""
        if self._other is None:
            return
        with suppress(OSError):
            assert self._other.stdin is not None
            self._other.stdin.close()
        for spec, path in self._kept:
            save(spec, path)
        if self._other.wait():
            for spec, path in self._sent:
                save(spec, path)


@contextmanager
def pictures(count: int) -> Generator[Pictures]:
    """Where so many figures are saved: by a second process where there are many, and two cores."""
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
    for line in sys.stdin.buffer:
        spec, path = json.loads(line)
        save(spec, Path(path))


if __name__ == "__main__":
    _serve()
