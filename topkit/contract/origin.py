# pyright: strict
"""The message of a broken law: its own, or what the recipe raised, with file and line."""

from __future__ import annotations

import linecache
import traceback
from itertools import chain
from types import FrameType

from topkit.contract.streams import parts
from topkit.indexers.base import Indexer

# Packages whose lines are no place to look at, unless the recipe is in them.
OURS = ("topkit", "torch", "numpy", "faiss")


def message_of(error: BaseException, indexer: Indexer) -> str:
    """The message of an error in a law, in one line with the place that raised it."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    frames = list(traceback.walk_tb(first.__traceback__))
    if isinstance(error, AssertionError) and first is error and _is_law(frames[-1][0]):
        return str(error)
    said = str(error) if isinstance(error, AssertionError) and first is not error else ""
    said = said or f"it raised {type(first).__name__}: {first}"
    return " ".join(said.split()) + _at(frames, indexer)


def _is_law(frame: FrameType) -> bool:
    return _module(frame).startswith("topkit.contract.")


def _at(frames: list[tuple[FrameType, int]], indexer: Indexer) -> str:
    """The last line in the recipe's own modules, else the last one outside of libraries."""
    modules = {type(part).__module__ for part in parts(indexer)}
    roots = {name.partition(".")[0] for name in modules if not name.startswith("topkit.")}
    own = [x for x in frames if _module(x[0]) in modules or _root(x[0]) in roots]
    others = (x for x in reversed(frames) if _root(x[0]) not in OURS)
    ours = (x for x in reversed(frames) if _root(x[0]) == "topkit" and not _is_law(x[0]))
    place = own[-1] if own else next(chain(others, ours), None)
    if place is None:
        return ""
    frame, number = place
    code = frame.f_code
    line = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return f", at {code.co_filename}:{number} in {code.co_name}" + (f": {line}" if line else "")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _root(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]
