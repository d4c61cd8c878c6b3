"""What kind of cell one is, and how it is named."""

# pyright: strict
from __future__ import annotations

from dataclasses import replace

from topkit.experiments.runs.cells import DENSE, Cell
from topkit.grammar import short
from topkit.indexers import exact
from topkit.indexers.base import Indexer
from topkit.indexers.degraded import degraded

EXACT = exact()


def kind_of(cell: Cell) -> str:
    """dense, oracle (ranks keys by their true scores), control (ignores the keys), or real.

    An indexer that cannot be made here counts as real.
    """
    if cell.indexer is None:
        return DENSE
    family = innermost(cell.indexer).family
    return family if family in ("oracle", "control") else "real"


def name_of(cell: Cell) -> str:
    """The cell's indexer as figures name it."""
    return DENSE if cell.indexer is None else short(cell.indexer)


def words_of(cell: Cell) -> str:
    """The cell in words."""
    return "full attention" if cell.indexer is None else f"{name_of(cell)} at k = {cell.budget}"


def innermost(indexer: Indexer) -> Indexer:
    """The indexer inside all combinators."""
    base = getattr(indexer, "base", None)
    return innermost(base) if indexer.family == "combinator" and base is not None else indexer


def family_of(cell: Cell) -> str:
    """The family that a cell's indexer stands and falls with; of an indexer of no family, itself."""
    family = "" if cell.indexer is None else innermost(cell.indexer).family
    return name_of(cell) if family in ("", "other", "unknown") else family


def manner_of(cell: Cell) -> str:
    """What an oracle loses, whatever its share: all of degraded(...) but its precision."""
    indexer = cell.indexer
    return repr(replace(indexer, precision=1.0)) if isinstance(indexer, degraded) else cell.name
