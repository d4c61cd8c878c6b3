# pyright: strict
"""Indexes that judge blocks of keys by a summary, and then the keys of the best ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.exact import chosen_scores
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.scored import waiting
from topkit.kernels.select_topk import select_topk


@dataclass
class TwoStageIndex(PagedIndex):
    """Summaries of every block, of which the best `blocks` are read; the keys themselves are in the cache."""

    blocks: int = field(kw_only=True)

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return Index.score(self, queries, step)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.select_many(queries, [k], step)[k]

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        pages = self._scores(queries, self.pages, step)
        chosen: dict[int, Selection] = {}
        for k in ks:
            slots = self._slots(pages, k, step)
            scores = self.scores_of(queries, slots, step)
            each = slots.repeat_interleave(scores.shape[1] // slots.shape[1], 1)
            best = select_topk(scores, min(k, self.slots), slots=each, **waiting(step))
            chosen[k] = Selection(best, **self._read(queries, slots, step))
        return chosen

    def scores_of(self, queries: Tensor, slots: Tensor, step: Step) -> Tensor:
        """Scores [B, H, Tq, n] of slots [B, Hs, Tq, n], -inf for -1."""
        return chosen_scores(queries, slots, step, self.slots)

    def slot_bytes(self, queries: Tensor, lists: int, step: Step) -> float:
        """Bytes that are read to score one slot of one of so many lists."""
        key = step.cache.key_bytes // step.cache.heads
        return key * (queries.shape[1] // lists)

    def _slots(self, scores: Tensor, k: int, step: Step) -> Tensor:
        """The visible slots [B, Hs, Tq, n] of the best blocks of scores [B, Hs, Tq, P], -1 for none.

        Of a block behind the best `blocks` only where those before it hold fewer than k.
        """
        size, device = self.recipe.page_size, scores.device
        # A query may see a single key of one of them.
        most = max(self.blocks, math.ceil((k - 1) / size) + 1)
        best = select_topk(scores, most, **waiting(step))[..., None]
        start = step.starts(device)[:, None, None, None, None]
        slots = best * size + torch.arange(size, device=device) + start
        stop = step.stops(self.slots, scores.shape[2], device).clamp_max(self.slots)
        there = (best >= 0) & (slots < stop[:, None, :, None, None])
        counts = there.sum(-1, keepdim=True)
        before = counts.cumsum(-2) - counts
        rank = torch.arange(best.shape[-2], device=device)[:, None]
        read = there & ((rank < self.blocks) | (before < k))
        return slots.masked_fill(~read, -1).flatten(3)

    def _read(self, queries: Tensor, slots: Tensor, step: Step) -> dict[str, Any]:
        """What judging the blocks cost, and reading the keys of those."""
        if not step.counted:
            return {}
        cost = self._cost(queries, self.slots, self.recipe.page_size, step)
        read, each = (slots >= 0).sum(-1).float(), self.slot_bytes(queries, slots.shape[1], step)
        return {
            "keys_scored": cost["keys_scored"] + read.mean(1),
            "bytes_read": cost["bytes_read"] + read.sum(1) * each,
        }
