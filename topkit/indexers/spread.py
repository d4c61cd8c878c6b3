# pyright: strict
"""A budget of few pages, spread over more of them: the newest keys of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.scored import waiting
from topkit.kernels.select_topk import select_topk


@dataclass
class SpreadIndex(PagedIndex):
    """Spreads a k of fewer than `least` whole pages over the best `least` pages.

    First the newest key of each page, the best page first, then the second newest of each, and so on.
    """

    least: int = field(default=1, kw_only=True)

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return Index.score(self, queries, step)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        size = self.recipe.page_size
        if k >= self.least * size:
            return super().select(queries, k, step)
        scores = self._scores(queries, self.pages, step)
        width = min(k, self.slots)
        # One of the pages may be part full; one page more then fills the list up.
        slots = self._newest_first(select_topk(scores, self.least + 1, **waiting(step)), step)
        first, behind = slots[..., : self.least, :], slots[..., self.least :, :]
        slots = torch.cat([first.mT.flatten(-2), behind.flatten(-2)], -1)
        order = (slots < 0).sort(dim=-1, stable=True).indices[..., :width]
        chosen = pad(slots.gather(-1, order), (0, width - order.shape[-1]), value=-1)
        return Selection(chosen, **self._cost(queries, self.slots, size, step))

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return {k: self.select(queries, k, step) for k in ks}

    def _newest_first(self, pages: Tensor, step: Step) -> Tensor:
        """The visible slots of pages [B, Hs, Tq, n], the newest of each first, -1 last: [..., n, size]."""
        size, device = self.recipe.page_size, pages.device
        start = step.starts(device)[:, None, None, None, None]
        stop = step.stops(self.slots, pages.shape[2], device).clamp_max(self.slots)
        slots = pages[..., None] * size + torch.arange(size - 1, -1, -1, device=device) + start
        hidden = (pages[..., None] < 0) | (slots >= stop[:, None, :, None, None])
        slots = slots.masked_fill(hidden, -1)
        return slots.gather(-1, hidden.sort(dim=-1, stable=True).indices)
