"""Where each query's list of keys is cut: a threshold a row, found in tiles of queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from topkit.kernels.select_topk import select_topk
from topkit.kernels.topk_attention.reference import products, visible

# Scores that are held at a time.
TILE = 1 << 24


@dataclass(frozen=True)
class Cuts:
    """A key stays where its score exceeds `high`, or exceeds `low` and its slot is at most `last`.

    Shapes: all [B, Hq, Tq]; scores are q . k, not scaled. Between two different scores low = high is their middle,
    so that a score that is computed again, in another order, falls on the same side; where the last score kept
    and the first left out are equal, both lie about it, and `last` is the last slot kept.
    """

    low: Tensor
    high: Tensor
    last: Tensor

    def of(self, part: slice) -> Cuts:
        """Those of some queries."""
        return Cuts(*(getattr(self, field.name)[:, :, part] for field in fields(self)))

    def keep(self, scores: Tensor) -> Tensor:
        """Whether each key of rows [B, Hq, Tq, T] stays; what is not seen is -inf."""
        slots = torch.arange(scores.shape[-1], device=scores.device)
        tied = (scores > self.low[..., None]) & (slots <= self.last[..., None])
        return tied | (scores > self.high[..., None])


def tiles(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, int]]:
    """Parts of the queries, and how many keys the last of each sees: TILE scores at a time, all heads'."""
    rows, heads, count, _ = queries.shape
    length = keys.shape[2]
    width = max(1, TILE // max(1, rows * heads * length))
    for first in range(0, count, width):
        stop = min(first + width, count)
        yield slice(first, stop), length - count + stop


def cuts_of(
    queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None = None, slack: float = 0.0
) -> Cuts:
    """The cuts of all queries, TILE scores at a time.

    Shapes: as `topk_attention`, kept [B or 1, Tq]. slack: how far scores that are computed again may be off,
    relative to a score that is tied.
    """
    made: list[Cuts] = []
    with torch.no_grad():
        for part, seen in tiles(queries, keys):
            scores = seen_scores(queries[:, :, part], keys[:, :, :seen], start)
            made.append(cuts_of_scores(scores, kept[:, part], slack))
    return Cuts(*(torch.cat([getattr(one, f.name) for one in made], 2) for f in fields(Cuts)))


def seen_scores(queries: Tensor, keys: Tensor, start: Tensor | None) -> Tensor:
    """q . k [B, Hq, Tq, T], -inf for what a query does not see: the newest tokens' queries."""
    seen = visible(queries.shape[2], keys.shape[2], start, queries.device)
    return products(queries, keys).masked_fill_(~seen, float("-inf"))


def cuts_of_scores(scores: Tensor, kept: Tensor, slack: float = 0.0) -> Cuts:
    """The cuts of rows of scores [B, Hq, Tq, T], of which `kept` [B or 1, Tq] stay.

    Raises: InputError for NaN.
    """
    most = max(1, int(kept.max()))
    slots = select_topk(scores, min(most + 1, scores.shape[-1]))
    there = slots >= 0
    ranked = scores.gather(-1, slots.clamp_min(0)).masked_fill(~there, float("-inf"))
    # The first that is left out may be none.
    ranked = torch.nn.functional.pad(ranked, (0, 1), value=float("-inf"))
    slots = torch.nn.functional.pad(slots, (0, 1), value=-1)
    count = torch.minimum(kept[:, None].expand(scores.shape[:-1]), there.sum(-1))[..., None]
    inner = (count - 1).clamp_min(0)
    return _between(
        ranked.gather(-1, inner)[..., 0],
        ranked.gather(-1, count)[..., 0],
        slots.gather(-1, inner)[..., 0],
        slack,
    )


def _between(last: Tensor, first: Tensor, slot: Tensor, slack: float) -> Cuts:
    """The cuts between the last score that stays and the first that is left out, -inf for none of them."""
    lowest = torch.full_like(last, float("-inf"))
    middle = first + (last - first) / 2
    middle = torch.where(middle < last, middle, first)
    # All that is seen stays; of nothing, nothing.
    middle = torch.where(first == lowest, lowest, middle)
    middle = torch.where(last == lowest, -lowest, middle)
    tied = (last == first) & (last > lowest)
    around = slack * last.abs()
    low = torch.where(tied, torch.nextafter(last - around, lowest), middle)
    high = torch.where(tied, last + around, middle)
    return Cuts(low, high, torch.where(tied, slot, -1))
