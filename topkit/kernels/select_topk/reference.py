"""Exact top-k with the one written tie rule."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError


def select_topk(scores: Tensor, k: int) -> Tensor:
    """The slots of the min(k, T) best scores, best first: all above the k-th, then lowest slots.

    Shapes: scores [..., T], -inf where a slot may not be chosen -> [..., min(k, T)] int64, -1 last
    where a row has fewer slots. The set is determined; the order among equal scores is not.
    Raises: InputError for k < 1 and for NaN.
    """
    if k < 1:
        raise InputError(f"k must be at least 1; got {k}")
    length = scores.shape[-1]
    k = min(k, length)
    # One more than asked shows whether the boundary is tied, in which case torch's pick is luck.
    values, slots = scores.topk(min(k + 1, length), dim=-1)
    if torch.isnan(values[..., :1]).any():
        raise InputError("scores hold NaN; check the queries and keys that made them")
    tied = _boundary_ties(values, k)
    values, slots = values[..., :k], slots[..., :k]
    if tied.any():
        slots = slots.contiguous()
        slots[tied] = _lowest_slots_first(scores[tied], values[tied][:, -1:], k)
        values = scores.gather(-1, slots)
    return slots.masked_fill(values == float("-inf"), -1)


def _boundary_ties(values: Tensor, k: int) -> Tensor:
    if values.shape[-1] == k:
        return torch.zeros(values.shape[:-1], dtype=torch.bool, device=values.device)
    return (values[..., k - 1] == values[..., k]) & (values[..., k - 1] > float("-inf"))


def _lowest_slots_first(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    above, equal = scores > threshold, scores == threshold
    wanted = k - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(-1) <= wanted))
    slots = chosen.nonzero()[:, 1].view(-1, k)
    order = scores.gather(-1, slots).argsort(dim=-1, descending=True, stable=True)
    return slots.gather(-1, order)
