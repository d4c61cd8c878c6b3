"""One pass over the scores of all keys: the best of them, and what is summed, in blocks that a CPU's caches hold."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topkit.fidelity.ties import NEVER
from topkit.kernels.blocks import blocks
from topkit.kernels.score import score
from topkit.kernels.select_topk.largest import largest

# Gives the sums [b, Hq, Tq, Dv] of the values of slots, by weights [b, Hq, Tq, n] of those from a slot on, in some
# of the rows.
Weigh = Callable[[Tensor, int, slice], Tensor]


@dataclass(frozen=True)
class Best:
    """The best scores so far and their slots [B, H, Tq, n]."""

    values: Tensor
    slots: Tensor

    def sorted(self) -> Best:
        values, order = self.values.sort(-1, descending=True)
        return Best(values, self.slots.gather(-1, order))


def best_of(before: Best | None, chunk: Tensor, at: int, k: int) -> Best:
    """The k best of both, in no order: sorting each time would cost as much as finding them."""
    if before is None:
        values, slots = largest(chunk, min(k, chunk.shape[-1]), sorted=False)
        return Best(values, slots + at)
    both, old = torch.cat([before.values, chunk], -1), before.values.shape[-1]
    values, place = largest(both, min(k, both.shape[-1]), sorted=False)
    kept = before.slots.gather(-1, place.clamp_max(old - 1))
    return Best(values, kept.where(place < old, place - old + at))


def nothing(like: Tensor) -> Best:
    """Of a cache without slots that anybody sees: one place, empty."""
    never = torch.full_like(like[..., None], NEVER)
    return Best(never, torch.zeros_like(never, dtype=torch.long))


@dataclass(frozen=True)
class Sums:
    """What one pass adds up of each query: as `Truth` has it; weighted, the sum of weights times logits."""

    best: Best
    top: Tensor
    total: Tensor
    weighted: Tensor
    output: Tensor | None


@dataclass(frozen=True)
class Source:
    """All scores of some rows of queries, known or made chunk by chunk; shapes as `truth`.

    `wide` values lie beside the keys.
    """

    queries: Tensor
    keys: Tensor | None
    scores: Tensor | None
    start: Tensor
    stop: Tensor
    # The last start and the first stop, between which every query sees all, and the last stop.
    bounds: tuple[int, int, int]
    memory: int
    wide: int = 0

    @classmethod
    def over(
        cls,
        queries: Tensor,
        keys: Tensor | None,
        scores: Tensor | None,
        start: Tensor,
        stop: Tensor,
        memory: int,
        wide: int = 0,
    ) -> Source:
        bounds = int(start.max()), int(stop.min()), int(stop.max())
        return cls(queries, keys, scores, start, stop, bounds, memory, wide)

    @property
    def length(self) -> int:
        return length_of(self.keys, self.scores)

    @property
    def blocks(self) -> Iterator[slice]:
        """Rows at a time: where scores are known, as many as a CPU's caches hold."""
        rows, heads, count, _ = self.queries.shape
        if self.scores is None:
            return iter([slice(0, rows)])
        return blocks(rows, heads * count * self.length, self.queries.device)

    def of(self, part: slice) -> Source:
        """The source of some of the rows, with the bounds of all."""
        if part == slice(0, len(self.queries)):
            return self
        return replace(
            self,
            queries=self.queries[part],
            keys=None if self.keys is None else rows_of(self.keys, part),
            scores=None if self.scores is None else self.scores[part],
            start=rows_of(self.start, part),
            stop=rows_of(self.stop, part),
        )

    def summed(self, k: int, scaling: float, weigh: Weigh | None, part: slice) -> Sums:
        """The k best and the sums of one pass over the keys; `part` says to `weigh` whose they are."""
        best, output = None, None
        top = torch.full_like(self.queries[..., 0], NEVER, dtype=torch.float32)
        total, weighted = torch.zeros_like(top), torch.zeros_like(top)
        for at, chunk, hidden in self.chunks():
            best = best_of(best, chunk, at, k)
            raised = top.maximum(best.values.amax(-1) * scaling)
            # A row that has seen nothing yet keeps its sums at zero.
            pivot = raised.masked_fill(raised == NEVER, 0.0)
            shrink = (top - pivot).exp()
            logits = torch.add(-pivot[..., None], chunk, alpha=scaling, out=chunk)
            weights = logits.exp()
            if hidden is not None:
                logits[..., -hidden.shape[-1] :].masked_fill_(hidden, 0.0)
            # The product is written over the logits: memory of its own would cost as much again.
            weighted = weighted * shrink + logits.mul_(weights).sum(-1)
            # The sum of logits is kept about the pivot, which has moved.
            weighted = weighted + total * shrink * (top - pivot).nan_to_num(neginf=0.0)
            total = total * shrink + weights.sum(-1)
            if weigh is not None:
                added = weigh(weights, at, part)
                output = added if output is None else output * shrink[..., None] + added
            top = raised
        return Sums(best or nothing(top), top, total, weighted, output)

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(first slot, scores [B, Hq, Tq, c], which of the last are hidden or None) chunk by chunk."""
        (rows, heads, count, width), keys = self.queries.shape, self.keys
        copied = 0 if keys is None else 2 * keys.shape[0] * keys.shape[1] * (width + self.wide)
        a_slot = 4 * (5 * rows * heads * count + copied)
        step = max(1, min(self.length, self.memory // a_slot))
        first, last, end = self.bounds
        at, end = 0, min(self.length, end)
        while at < end:
            until = min(at + step, self.length)
            # Padding stands in chunks of its own: behind it a mask of the last slots is enough.
            if at < first:
                until = min(until, first)
            chunk = self._scores(at, until)
            hidden = None
            if until > last or at < first:
                begin = at if at < first else max(at, last)
                slots = torch.arange(begin, until, device=self.queries.device)
                hidden = slots >= self.stop[:, None, :, None]
                hidden = hidden | (slots < self.start[:, None, None, None])
                chunk[..., -len(slots) :].masked_fill_(hidden, NEVER)
            yield at, chunk, hidden
            at = until

    def _scores(self, at: int, until: int) -> Tensor:
        """A chunk that may be written to: of what is known, a copy."""
        if self.scores is not None:
            return self.scores[..., at:until].clone()
        assert self.keys is not None
        return score(self.queries, self.keys[:, :, at:until])


def joined(sums: Sequence[Sums]) -> Sums:
    """Rows of several blocks, one behind the other."""
    if len(sums) == 1:
        return sums[0]
    top, total, weighted = (
        torch.cat([getattr(one, name) for one in sums]) for name in ("top", "total", "weighted")
    )
    outputs = [one.output for one in sums if one.output is not None]
    output = torch.cat(outputs) if outputs else None
    return Sums(bests([one.best for one in sums]), top, total, weighted, output)


def bests(parts: Sequence[Best]) -> Best:
    """Rows of several blocks, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return Best(torch.cat([one.values for one in parts]), torch.cat([one.slots for one in parts]))


def rows_of(x: Tensor, part: slice) -> Tensor:
    """Some rows; what is the same for all rows has one."""
    return x if len(x) == 1 else x[part]


def length_of(keys: Tensor | None, scores: Tensor | None) -> int:
    if scores is not None:
        return scores.shape[3]
    assert keys is not None
    return keys.shape[2]
