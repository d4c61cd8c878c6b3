# pyright: strict, reportUnknownMemberType=false
"""The best keys of some rows: of the hits of FAISS and of the keys in the tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.faiss_base import Hits
from topkit.indexers.faiss_tail import Tail


@dataclass(frozen=True)
class Asked:
    """Queries of one select, and the slots that each sees.

    Shapes: vectors [b, Hk, q, D], q the query heads of a group, times the tokens; stop [b, tokens] (None:
    every key, by one token); start [b] (None: 0).
    """

    vectors: Tensor
    tokens: int
    stop: Tensor | None
    start: Tensor | None

    @classmethod
    def of(cls, vectors: Tensor, heads: int, step: Step, slots: int) -> Asked:
        """Queries [b, Hq, tokens, D] as `vectors`, of so many KV heads, at an index of so many slots."""
        rows, _, tokens, width = vectors.shape
        start, stop = step.start, step.stop
        if tokens > 1 or (stop is not None and bool((stop != slots).any())):
            stop = step.stops(slots, tokens).to(vectors.device).expand(rows, -1)
        else:
            stop = None
        start = None if start is None else start.to(vectors.device).expand(rows)
        return cls(vectors.reshape(rows, heads, -1, width), tokens, stop, start)

    def at(self, rows: slice | list[int]) -> Asked:
        """The queries of some rows."""
        if rows == slice(None):
            return self
        stop = None if self.stop is None else self.stop[rows]
        return Asked(
            self.vectors[rows],
            self.tokens,
            stop,
            None if self.start is None else self.start[rows],
        )

    def each(self, by_query: Tensor) -> Tensor:
        """Numbers a query [b, Hk, q] summed over heads: a number a token [b, tokens]."""
        parts = by_query.reshape(*by_query.shape[:2], -1, self.tokens)
        return parts.sum((1, 2)).double()

    def unseen(self, stop: int) -> int:
        """The most slots before `stop` that a query does not see."""
        return 0 if self.stop is None else max(0, stop - int(self.stop.min()))

    def hidden(self, slots: Tensor) -> Tensor | None:
        """Where slots [b, Hk, q, n], or [n], are not seen; None where all are."""
        if self.stop is None:
            return None
        group = self.vectors.shape[2] // self.tokens
        return slots >= self.stop.repeat(1, group)[:, None, :, None]


@dataclass(frozen=True)
class Best:
    """Slots [b, Hk, q, k], best first and -1 behind them; compared [b, tokens], keys scored by all heads."""

    slots: Tensor
    compared: Tensor

    @classmethod
    def of(cls, asked: Asked, hits: Sequence[Hits], k: int, tail: Tail | None) -> Best:
        """The best of the hits of each KV head and of the tail.

        hits: more than k a query where the FAISS index has keys that the query does not see.
        """
        count = asked.vectors.shape[2]
        slots = _by_row([one.ids for one in hits], count)
        if asked.start is not None:
            slots = torch.where(slots < 0, slots, slots + asked.start[:, None, None, None])
        compared, hidden = _compared(hits, asked), asked.hidden(slots)
        if tail is None and hidden is None:
            return cls(slots[..., :k], compared)
        scores = _by_row([one.scores for one in hits], count)
        if hidden is not None:
            slots, scores = slots.masked_fill(hidden, -1), scores.masked_fill(hidden, -torch.inf)
        if tail is not None:
            lists = [one.probes for one in hits if one.probes is not None]
            behind, seen = tail.scores(asked.vectors, _by_row(lists, count) if lists else None)
            beyond = torch.arange(tail.first, tail.first + behind.shape[-1], device=slots.device)
            later = asked.hidden(beyond)
            if later is not None:
                seen, behind = seen & ~later, behind.masked_fill(later, -torch.inf)
            compared = compared + asked.each(seen.sum(-1))
            slots = torch.cat([slots, beyond.where(seen, -1)], -1)
            scores = torch.cat([scores, behind], -1)
        order = torch.sort(scores, descending=True, stable=True).indices[..., :k]
        return cls(slots.gather(-1, order), compared)


def _by_row(parts: Sequence[Tensor], count: int) -> Tensor:
    """Tensors [b * q, ...], one of each KV head, as one [b, Hk, q, ...]."""
    every = torch.stack(list(parts))
    return every.view(len(parts), -1, count, *every.shape[2:]).transpose(0, 1)


def _compared(hits: Sequence[Hits], asked: Asked) -> Tensor:
    """Keys that FAISS compared for each token, at most those that it sees [b, tokens]."""
    rows, _, count, _ = asked.vectors.shape
    counts = [one.compared for one in hits if isinstance(one.compared, Tensor)]
    if counts:
        compared = asked.each(_by_row(counts, count))
    else:
        total = sum(float(one.compared) for one in hits) * count / asked.tokens
        compared = asked.vectors.new_full((rows, asked.tokens), total, dtype=torch.float64)
    if asked.stop is None:
        return compared
    first = 0 if asked.start is None else asked.start[:, None]
    return compared.minimum((asked.stop - first).clamp_min(0) * len(hits) * count / asked.tokens)


def unfilled(vectors: Tensor, k: int) -> Tensor:
    """Lists of k slots for vectors [B, Hk, q, D], all -1."""
    return vectors.new_full((*vectors.shape[:3], k), -1, dtype=torch.int64)
