"""Indexers: one file a method, one line each in the registry."""

from topkit.indexers.base import Cache, Index, Indexer, Rest, Selection, Step
from topkit.indexers.exact import exact
from topkit.indexers.random import random
from topkit.indexers.scored import Scored

INDEXERS: dict[str, type[Indexer]] = {
    "exact": exact,
    "random": random,
}

__all__ = [
    "INDEXERS",
    "Cache",
    "Index",
    "Indexer",
    "Rest",
    "Scored",
    "Selection",
    "Step",
    *INDEXERS,
]
