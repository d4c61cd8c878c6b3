"""Lists that are long beside their cache: a product over all slots costs less than gathering some.

Gathering copies every key or value once for each list that chose it; a product reads it once for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The part of all slots that a list holds at least. At 1/32 either may be the faster, by the cache's size;
# from 1/16 on the product is, 4 times at 32K slots on a CPU.
LONG = 16
# Bytes of gathered keys, or of whole rows, at a time: what still lies in a CPU's cache is read again at
# less cost, and a product is worth its call.
GATHERED, WHOLE = 1 << 24, 1 << 26


def long(picked: Tensor, length: int, heads: int) -> bool:
    """Whether lists [B, lists, Tq, k] are long enough, and enough of them share a KV head's slots.

    On a GPU never: kernels gather there, and a captured step may not look at what came out.
    """
    _, lists, count, kept = picked.shape
    return _long(picked, length) and kept * count * lists // heads >= length


def queries_at_a_time(indices: Tensor, keys: Tensor, heads: int, width: int) -> int:
    """How many of the queries of `heads` heads to take at once, so that little memory is written to.

    Shapes: indices [B, Hs, Tq, k], keys [B or 1, Hk, T, D]; `width` of what is gathered.
    """
    rows, lists, _, kept = indices.shape
    if _long(indices, keys.shape[2]):
        return max(1, WHOLE // (4 * rows * heads * keys.shape[2]))
    return max(1, GATHERED // max(1, 4 * rows * max(lists, keys.shape[1]) * kept * width))


def _long(indices: Tensor, length: int) -> bool:
    return not indices.is_cuda and indices.shape[-1] * LONG >= length > 0


def scores(grouped: Tensor, keys: Tensor, picked: Tensor) -> Tensor:
    """The dot products of queries [B, lists, Tq, n, D] with chosen keys: [B, lists, Tq, n, k]."""
    shared = _by_kv_head(grouped, keys.shape[1])
    whole = (shared @ keys.float().mT).view(*grouped.shape[:-1], keys.shape[2])
    return whole.gather(-1, _slots(picked, whole).expand(*grouped.shape[:-1], -1))


def weighted(weights: Tensor, values: Tensor, picked: Tensor) -> Tensor | None:
    """The sums of chosen values by weights [B, lists, Tq, n, k]: [B, lists, Tq, n, Dv].

    None where they are not finite: a slot that nobody chose may hold anything, and a weight of zero
    times infinity shows.
    """
    whole = weights.new_zeros(*weights.shape[:-1], values.shape[2])
    whole.scatter_add_(-1, _slots(picked, whole).expand_as(weights), weights)
    sums = _by_kv_head(whole, values.shape[1]) @ values.float()
    return sums.view(*weights.shape[:-1], -1) if torch.isfinite(sums).all() else None


def _by_kv_head(by_list: Tensor, heads: int) -> Tensor:
    """[B, lists, Tq, n, D] -> [B, Hk, lists / Hk Tq n, D]."""
    return by_list.unflatten(1, (heads, -1)).flatten(2, 4)


def _slots(picked: Tensor, whole: Tensor) -> Tensor:
    """Chosen slots [B, lists, Tq, 1, k], any slot in the place of -1."""
    return picked.clamp(0, whole.shape[-1] - 1)[..., None, :]
