"""Exact top-k with the one written tie rule."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels.select_topk.largest import largest


def select_topk(scores: Tensor, k: int, slots: Tensor | None = None) -> Tensor:
    """The slots of the min(k, T) best scores, best first, equal scores by the lowest slot.

    Shapes: scores [..., T], -inf where a slot may not be chosen, of `slots` as scores (None: their places)
    -> [..., min(k, T)] int64, -1 last where a row has fewer slots. Set and order are determined, so that
    a list may be cut anywhere.
    Raises: InputError for k < 1 and for NaN.
    """
    if slots is not None:
        # In ascending order, so that ties fall to the lowest slot as everywhere.
        slots, order = slots.sort(-1)
        places = select_topk(scores.gather(-1, order), k)
        return slots.gather(-1, places.clamp_min(0)).masked_fill(places < 0, -1)
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    length = scores.shape[-1]
    k = min(k, length)
    # One more than k shows whether the boundary is tied. Among equals torch's choice is arbitrary.
    values, slots = largest(scores, min(k + 1, length))
    if torch.isnan(values[..., :1]).any():
        raise InputError("scores hold NaN; check the queries and keys that made them")
    equal = (values[..., 1:] == values[..., :-1]) & (values[..., 1:] > float("-inf"))
    values, slots = values[..., :k], slots[..., :k]
    tied, cut = equal.any(-1), equal[..., k - 1 :].any(-1)
    if tied.any():
        values[cut], slots[cut] = _lowest_slots(scores[cut], values[cut][:, -1:], k)
        slots[tied] = _best_first(values[tied], slots[tied])
    return slots.masked_fill(values == float("-inf"), -1)


def _lowest_slots(scores: Tensor, threshold: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All above the threshold, and of those at it the lowest that fill up k: values, slots [n, k]."""
    above, equal = scores > threshold, scores == threshold
    wanted = k - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(-1) <= wanted))
    slots = chosen.nonzero()[:, 1].view(-1, k)
    return scores.gather(-1, slots), slots


def _best_first(values: Tensor, slots: Tensor) -> Tensor:
    slots, order = slots.sort(-1)
    order = values.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    return slots.gather(-1, order)
