# pyright: strict
"""The best keys of some rows, of what FAISS says of each head and of the keys that stand behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.indexers.faiss_base import Hits
from topkit.indexers.faiss_tail import Tail


@dataclass(frozen=True)
class Best:
    """Slots [b, Hk, q, k], best first and -1 behind them; compared [b], keys scored by all heads of a row."""

    slots: Tensor
    compared: Tensor

    @classmethod
    def of(
        cls, queries: Tensor, hits: Sequence[Hits], k: int, start: Tensor | None, tail: Tail | None
    ) -> Best:
        """Of the hits of each KV head for queries [b, Hk, q, D]; start [b] is the slot of the first id."""
        asked = queries.shape[2]
        slots = _by_row([one.ids for one in hits], asked)
        if start is not None:
            slots = torch.where(slots < 0, slots, slots + start[:, None, None, None])
        compared = _compared(hits, queries)
        if tail is None:
            return cls(slots, compared)
        lists = [one.probes for one in hits if one.probes is not None]
        behind, seen = tail.scores(queries, _by_row(lists, asked) if lists else None)
        beyond = torch.arange(tail.first, tail.first + behind.shape[-1], device=slots.device)
        beyond = beyond.where(seen, -1)
        scores = torch.cat([_by_row([one.scores for one in hits], asked), behind], -1)
        order = torch.sort(scores, descending=True, stable=True).indices
        slots = torch.cat([slots, beyond], -1).gather(-1, order[..., :k])
        return cls(slots, compared + seen.sum((1, 2, 3)))


def _by_row(parts: Sequence[Tensor], asked: int) -> Tensor:
    """[b * q, ...] of each KV head as [b, Hk, q, ...]."""
    return torch.stack(list(parts)).unflatten(1, (-1, asked)).transpose(0, 1)


def _compared(hits: Sequence[Hits], queries: Tensor) -> Tensor:
    counts = [one.compared for one in hits if isinstance(one.compared, Tensor)]
    if counts:
        return _by_row(counts, queries.shape[2]).sum((1, 2)).double()
    total = sum(float(one.compared) for one in hits) * queries.shape[2]
    return queries.new_full((len(queries),), total, dtype=torch.float64)
