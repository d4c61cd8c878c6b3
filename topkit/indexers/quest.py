"""Quest: pages judged by the bounds of their keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.compact import compact
from topkit.indexers.traits import Traits
from topkit.kernels.score import score
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class quest(Indexer):
    """Keeps whole pages by an upper bound of their scores, and gives up telling keys of a page apart.

    A page's bound is sum_i max(q_i low_i, q_i high_i) over its element-wise extremes; the last page
    that k reaches is cut to its newest keys. Pages count from each row's first real key.
    Source: arXiv 2406.10774, section 3.2.
    """

    page_size: int = 16

    family: ClassVar[str] = "pages"
    source: ClassVar[str] = "arXiv 2406.10774"
    cost: ClassVar[str] = "reads 2 keys a page"
    examples: ClassVar[tuple[str, ...]] = ("quest(page_size=4)", "quest()", "quest(page_size=1)")

    def __post_init__(self) -> None:
        whole(self, "page_size", 1)

    def traits(self) -> Traits:
        return Traits(needs=frozenset({"cache"}), causal_codes=False, score_all=True)

    def build(self, keys: Tensor, step: Step) -> Index:
        rows, groups, _, width = keys.shape
        index = Pages(self.page_size, keys.new_empty(rows, groups, 0, width))
        index.append(keys, step)
        return index


class Pages(Index):
    """Element-wise least and greatest key of each page [B, Hk, P, D]; replaced, never written in."""

    def __init__(self, page_size: int, none: Tensor) -> None:
        self.page_size, self.slots = page_size, 0
        self.low, self.high = none, none.clone()

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        return 2 * self.low.numel() * self.low.element_size()

    def append(self, keys: Tensor, step: Step) -> None:
        rows, groups, count, width = keys.shape
        page = self._page(self.slots, self.slots + count, step, keys.device)
        pages = math.ceil((self.slots + count) / self.page_size) - self.low.shape[2]
        fresh = keys.new_full((rows, groups, pages, width), float("inf"))
        place = page.clamp_min(0)[:, None, :, None].expand(rows, groups, count, width)
        padded = (page < 0)[:, None, :, None]
        low, high = keys.masked_fill(padded, float("inf")), keys.masked_fill(padded, -float("inf"))
        self.low = torch.cat([self.low, fresh], 2).scatter_reduce_(2, place, low, "amin")
        self.high = torch.cat([self.high, -fresh], 2).scatter_reduce_(2, place, high, "amax")
        self.slots += count

    def truncate(self, length: int, step: Step) -> None:
        # A bound cannot be taken back: the pages that the cut goes through are made anew.
        start = step.starts()
        whole_pages = max(int(length - start.max()) // self.page_size, 0)
        self.slots = min(int(start.min()) + whole_pages * self.page_size, length)
        self.low, self.high = self.low[:, :, :whole_pages], self.high[:, :, :whole_pages]
        keys = step.cache.keys[:, :, self.slots : length]
        self.append(keys.expand(self.low.shape[0], -1, -1, -1), step)

    def reorder(self, rows: Tensor) -> None:
        self.low, self.high = self.low[rows], self.high[rows]

    def score(self, queries: Tensor, step: Step) -> Tensor:
        bounds = self._bounds(queries, step)
        page = self._page(0, self.slots, step, queries.device).clamp_min(0)
        return bounds.gather(-1, page[:, None, None].expand(*bounds.shape[:3], -1))

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        # A page larger than all that is there is one of just that size.
        size, width = min(self.page_size, max(self.slots, 1)), min(k, self.slots)
        bounds = self._bounds(queries, step)
        # The newest page may be part full, so that k keys can need one page more.
        pages = select_topk(bounds, math.ceil(k / size) + 1)
        newest_first = torch.arange(size - 1, -1, -1, device=queries.device)
        slots = (pages * size)[..., None] + newest_first
        slots = slots + step.starts(queries.device)[:, None, None, None, None]
        stop = step.stops(self.slots, queries.shape[2], queries.device).clamp_max(self.slots)
        there = (pages >= 0)[..., None] & (slots < stop[:, None, :, None, None])
        chosen = compact(slots.masked_fill(~there, -1).flatten(-2), width)
        seen = (step.seen(self.slots, queries.shape[2], queries.device) + size - 1) // size
        per_page = self.page_size * self.bytes_per_key(step)
        return Selection(chosen, keys_scored=seen, bytes_read=seen * per_page)

    def bytes_per_key(self, step: Step) -> float:
        return 2 * self.low[0, :, 0].numel() * self.low.element_size() / self.page_size

    def _bounds(self, queries: Tensor, step: Step) -> Tensor:
        """Upper bounds [B, Hq, Tq, P] of the scores in each page, -inf where none is visible."""
        queries = queries.float()
        bounds = score(queries.clamp_min(0), self.high) + score(queries.clamp_max(0), self.low)
        seen = step.seen(self.slots, queries.shape[2], queries.device)
        first = torch.arange(self.low.shape[2], device=queries.device) * self.page_size
        return bounds.masked_fill((first >= seen[..., None])[:, None], -float("inf"))

    def _page(self, a: int, b: int, step: Step, device: torch.device) -> Tensor:
        """The page of each slot from a to b [B or 1, b - a]; negative where it is padding."""
        place = torch.arange(a, b, device=device) - step.starts(device)[:, None]
        return place.div(self.page_size, rounding_mode="floor")
