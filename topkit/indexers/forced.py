# pyright: strict
"""Keys that are kept whatever they weigh: said where they leave nothing to choose."""

from __future__ import annotations

import warnings
from functools import cache

from topkit.indexers.base import Indexer


@cache  # said once of each recipe and k
def say_full(recipe: Indexer, forced: int, k: int, nothing: str) -> None:
    """Warn that forced keys fill a list. nothing: what is not chosen, in words."""
    warnings.warn(
        f"{recipe}: its {forced} forced keys fill k = {k}, so that {nothing}; give a greater k, or a smaller sink and "
        "window",
        stacklevel=2,
    )
