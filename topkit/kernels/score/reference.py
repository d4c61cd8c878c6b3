"""Query-key dot products, query heads sharing the key head of their group."""

from __future__ import annotations

from torch import Tensor


def score(queries: Tensor, keys: Tensor) -> Tensor:
    """Float32 dot products of every query with every key of its group.

    Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D], Hq a multiple of Hk ->
    [B, Hq, Tq, T].
    """
    rows, heads, count, width = queries.shape
    groups = keys.shape[1]
    packed = queries.float().reshape(rows, groups, heads // groups * count, width)
    return (packed @ keys.float().mT).view(rows, heads, count, keys.shape[2])
