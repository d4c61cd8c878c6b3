"""Where each query's list of keys is cut: a threshold a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import isqrt

import torch
from torch import Tensor

from topkit.kernels.select_topk import select_topk
from topkit.kernels.topk_attention.reference import products, visible

# Scores that are held at a time, and on a GPU, where each tile costs a few launches.
TILE, TILE_CUDA = 1 << 24, 1 << 25
# How far a score of bf16 products, summed in float32 in another order, may be off.
SLACK = 2e-6


@dataclass(frozen=True)
class Cuts:
    """A key stays where its score exceeds `high`, or exceeds `low` and its slot is at most `last`.

    `top` is the row's best score, -inf of none. Shapes: all [B, Hq, Tq], `last` int32; scores are q . k, not scaled. Between two different scores low = high is their middle,
    so that a score that is computed again, in another order, falls on the same side; where the last score kept
    and the first left out are equal, both lie about it, and `last` is the last slot kept.
    """

    low: Tensor
    high: Tensor
    last: Tensor
    top: Tensor

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
    room = (TILE_CUDA if queries.is_cuda else TILE) // max(1, rows * heads)
    first, before = 0, keys.shape[2] - count
    while first < count:
        # The most queries w of which w x (keys that the last of them sees) have room.
        seen = before + first
        width = max(1, (isqrt(seen * seen + 4 * room) - seen) // 2)
        stop = min(first + width, count)
        yield slice(first, stop), before + stop
        first = stop


def seen_scores(queries: Tensor, keys: Tensor, start: Tensor | None) -> Tensor:
    """q . k [B, Hq, Tq, T], -inf for what a query does not see: the newest tokens' queries."""
    seen = visible(queries.shape[2], keys.shape[2], start, queries.device)
    return products(queries, keys).masked_fill_(~seen, float("-inf"))


def cuts_of_scores(scores: Tensor, kept: Tensor, slack: float = 0.0) -> Cuts:
    """The cuts of rows of scores [B, Hq, Tq, T], of which `kept` [B or 1, Tq] stay.

    Raises: InputError for NaN.
    """
    most = max(1, int(kept.max()))
    return cuts_of_slots(
        scores, select_topk(scores, min(most + 1, scores.shape[-1])), kept[:, None], slack
    )


def cuts_of_slots(scores: Tensor, slots: Tensor, kept: Tensor, slack: float) -> Cuts:
    """The cuts of rows whose best slots, one more than stay, are known; kept broadcasts to the rows."""
    there = slots >= 0
    ranked = scores.gather(-1, slots.clamp_min(0)).masked_fill(~there, float("-inf"))
    # The first that is left out may be none.
    ranked = torch.nn.functional.pad(ranked, (0, 1), value=float("-inf"))
    slots = torch.nn.functional.pad(slots, (0, 1), value=-1)
    count = torch.minimum(kept.expand(scores.shape[:-1]), there.sum(-1)).clamp_min(0)[..., None]
    inner = (count - 1).clamp_min(0)
    stays = ranked.gather(-1, inner).masked_fill(count == 0, float("-inf"))
    return between(
        stays[..., 0],
        ranked.gather(-1, count)[..., 0],
        slots.gather(-1, inner)[..., 0],
        ranked[..., 0],
        slack,
    )


def between(last: Tensor, first: Tensor, slot: Tensor, top: Tensor, slack: float) -> Cuts:
    """The cuts between the last score that stays and the first that is left out, -inf for none of them."""
    lowest = torch.full_like(last, float("-inf"))
    middle = first + (last - first) / 2
    middle = torch.where(middle < last, middle, first)
    # All that is seen stays; of nothing, nothing.
    middle = torch.where(first == lowest, lowest, middle)
    middle = torch.where(last == lowest, -lowest, middle)
    tied = (last == first) & (last > lowest)
    # No sum is off by a share of infinity; and a bar below infinity stays so.
    around = slack * last.abs().masked_fill(last.isinf(), 0.0)
    above = (last + around).clamp_max(torch.finfo(last.dtype).max)
    low = torch.where(tied, torch.nextafter(last - around, lowest), middle)
    high = torch.where(tied, torch.where(last.isinf(), last, above), middle)
    return Cuts(low, high, torch.where(tied, slot, -1).int(), top)
