# pyright: strict
"""HISA: blocks by their mean key, then their keys one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.exact import chosen_scores
from topkit.indexers.moba import moba
from topkit.indexers.paged import PagedIndex
from topkit.indexers.scored import waiting
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class hisa(moba):
    """Keeps the best keys, by exact scores, of the `pages` blocks whose mean key is best.

    The paper's scores are those of DeepSeek's indexer, here dot products of queries and keys. Where
    these blocks hold fewer keys than k, the next are read until they do. Source: arXiv 2603.28458, section 3.
    """

    page_size: int = 128
    pages: int = 64

    source: ClassVar[str] = "arXiv 2603.28458"
    cost: ClassVar[str] = "reads 1 key a page, and the keys of 64 pages"
    examples: ClassVar[tuple[str, ...]] = (
        "hisa(page_size=4, pages=3)",
        "hisa()",
        "hisa(page_size=1, pages=7)",
    )
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {
        "pages": range(1, 1025),
        "page_size": range(1, 1025),
    }
    # A query's own block stands with the others.
    current_first: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "pages", 1)

    def traits(self) -> Traits:
        return replace(super().traits(), score_all=False, fixed=False)

    def costs(self, shape: Shape) -> Cost:
        s, read = shape, shape.Hq * least(shape.T, self.pages * self.page_size) * shape.D
        # How full the last block is, and whether it is among the best, the keys say.
        return replace(super().costs(s).besides(read * s.e, read), estimated=True)

    def build(self, keys: Tensor, step: Step) -> Index:
        index = TwoStageIndex(self)
        index.append(keys, step)
        return index


@dataclass
class TwoStageIndex(PagedIndex):
    """Mean keys of every block; the keys themselves are read from the cache."""

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return Index.score(self, queries, step)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.select_many(queries, [k], step)[k]

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        assert isinstance(self.recipe, hisa)
        pages = self._scores(queries, self.pages, step)
        chosen: dict[int, Selection] = {}
        for k in ks:
            slots = self._slots(pages, k, step)
            scores = chosen_scores(queries, slots, step, self.slots)
            each = slots.repeat_interleave(scores.shape[1] // slots.shape[1], 1)
            best = select_topk(scores, min(k, self.slots), slots=each, **waiting(step))
            chosen[k] = Selection(best, **self._read(queries, slots, step))
        return chosen

    def _slots(self, scores: Tensor, k: int, step: Step) -> Tensor:
        """The visible slots [B, Hs, Tq, n] of the best blocks of scores [B, Hs, Tq, P], -1 for none.

        Of a block behind the best `pages` only where those before it hold fewer than k.
        """
        assert isinstance(self.recipe, hisa)
        size, device = self.recipe.page_size, scores.device
        # A query may see a single key of one of them.
        most = max(self.recipe.pages, math.ceil((k - 1) / size) + 1)
        best = select_topk(scores, most, **waiting(step))[..., None]
        start = step.starts(device)[:, None, None, None, None]
        slots = best * size + torch.arange(size, device=device) + start
        stop = step.stops(self.slots, scores.shape[2], device).clamp_max(self.slots)
        there = (best >= 0) & (slots < stop[:, None, :, None, None])
        held = there.sum(-1, keepdim=True)
        before = held.cumsum(-2) - held
        rank = torch.arange(best.shape[-2], device=device)[:, None]
        read = there & ((rank < self.recipe.pages) | (before < k))
        return slots.masked_fill(~read, -1).flatten(3)

    def _read(self, queries: Tensor, slots: Tensor, step: Step) -> dict[str, Any]:
        """What judging the blocks cost, and reading the keys of those for each of the query heads."""
        if not step.counted:
            return {}
        cost = self._cost(queries, self.slots, self.recipe.page_size, step)
        read, heads = (slots >= 0).sum(-1).float(), queries.shape[1]
        key = step.cache.key_bytes // step.cache.heads
        return {
            "keys_scored": cost["keys_scored"] + read.mean(1),
            "bytes_read": cost["bytes_read"] + read.sum(1) * (heads // slots.shape[1]) * key,
        }
