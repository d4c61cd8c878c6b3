# pyright: strict
"""The family "judge pages of keys by a summary, keep whole pages"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Step
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.pages import PageRecipe, Pages
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits

__all__ = ["Paged", "PagedIndex", "Pages"]


@dataclass(frozen=True)
class Paged(PageRecipe):
    """A recipe that writes how a page of keys is summarised and how summaries are scored.

    Pages count from each row's first real key. The last page that k reaches is cut to its newest keys.
    """

    family: ClassVar[str] = "pages"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"page_size": range(1, 1025)}
    # Dot products that score a page.
    products: ClassVar[int] = 1

    def traits(self) -> Traits:
        # A summary has seen every key of its page, and a page that is cut is made anew from the cache.
        return Traits(needs=frozenset({"cache"}), causal_codes=False, score_all=True, fixed=True)

    def summary_bytes(self, shape: Shape) -> float:
        """Bytes of one page's summary, over all heads of the layer."""
        raise InputError(f"{self} does not state what it costs: it has no `summary_bytes`")

    def costs(self, shape: Shape) -> Cost:
        s, summary = shape, self.summary_bytes(shape)
        pages = math.ceil(s.T / self.page_size)
        return Cost(
            index=summary * pages / s.T,
            read=summary * pages,
            operations=self.products * s.Hq * pages * s.D,
            build=s.Hk * s.T * s.D,
            append=s.Hk * s.D,
            lists=s.Hq,
            kept=s.kept,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        index = PagedIndex(self)
        index.append(keys, step)
        return index
