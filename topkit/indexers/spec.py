"""The indexer that a text names; docs/grammar.md has the rule."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from topkit import grammar
from topkit.errors import InputError
from topkit.grammar import Verbatim, nearest, quoted, short
from topkit.indexers.base import Indexer

__all__ = ["nearest", "parse", "quoted", "recorded", "short", "unknown"]


def parse(spec: str | Indexer, registry: Mapping[str, type[Indexer]] | None = None) -> Indexer:
    """The indexer that a spec names: `quantized:dtype=int4`, `keep(mine.selectors:lowrank(r=16), sink=4)`.

    registry: names in place of topkit's own.
    Raises: InputError for a spec that does not parse, an unknown name or a misspelt parameter (the
    nearest is suggested), and a value that the recipe refuses.
    """
    names = Indexer.registry()
    return grammar.parse(spec, names if registry is None else names.beside(registry))


@dataclass(frozen=True)
class unknown(Verbatim, Indexer):
    """An indexer of a table that cannot be made here: its class or a file of it is elsewhere."""

    text: str
    why: str = field(default="", compare=False)

    family: ClassVar[str] = "unknown"


def recorded(text: str) -> Indexer:
    """The indexer that a table names; `unknown`, by the same name, where it cannot be made here.

    Nobody is warned of names that have changed: a table keeps what it was written with.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return parse(text)
    except InputError as error:
        return unknown(text, str(error))
