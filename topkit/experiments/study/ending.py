"""The page that a study ends with, and what only drawing it needs."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from topkit.errors import MissingExtra, extras_named
from topkit.experiments.runs.shards import Shard


def page_writer() -> Callable[[Path], Path]:
    """What writes the page of a study's folder. Raises: MissingExtra for a package that only pages need."""
    with extras_named():
        from topkit.experiments.study.report import write_report
    return write_report


def ended(out: Path, shard: Shard) -> Path:
    """Write the page of a study whose rows are all there; returns its path.

    A shard ends well on a machine that cannot draw: then there is no page yet, and OUT is returned.
    Raises: MissingExtra for a whole study.
    """
    try:
        write = page_writer()
    except MissingExtra:
        if shard.whole:
            raise
        return out
    return write(out)


def not_drawn() -> str | None:
    """What to install where this machine cannot write a page; None where it can."""
    try:
        page_writer()
    except MissingExtra as missing:
        return str(missing)
    return None
