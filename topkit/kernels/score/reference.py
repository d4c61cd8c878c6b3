"""Query-key dot products, query heads sharing the key head of their group."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels.codes import factors, levels, unpack


def score(queries: Tensor, keys: Tensor) -> Tensor:
    """Float32 dot products of every query with every key of its group.

    Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D], Hq a multiple of Hk ->
    [B, Hq, Tq, T].
    Raises: InputError where it is none.
    """
    rows, heads, count, width = queries.shape
    groups = keys.shape[1]
    if groups == 0 or heads % groups:
        raise InputError(f"keys must have a divisor of {heads} heads (query); got {groups}")
    packed = queries.float().reshape(rows, groups, heads // groups * count, width)
    return (packed @ keys.float().mT).view(rows, heads, count, keys.shape[2])


def score_codes(
    queries: Tensor,
    codes: Tensor,
    *,
    dtype: str,
    scale: Tensor | None = None,
    pool: str | None = None,
    start: Tensor | None = None,
    stop: Tensor | None = None,
) -> Tensor:
    """As topkit.kernels.score.score_codes, of keys that are decoded first."""
    if dtype == "sign":
        # q . (2 b - 1) = 2 q . b - sum(q)
        queries = queries.float()
        bits = unpack(codes, 1, queries.shape[-1])
        scores = 2 * score(queries, bits) - queries.sum(-1, keepdim=True)
    else:
        scores = score(queries, levels(codes, dtype, queries.shape[-1]))
    if scale is not None:
        scores.unflatten(1, (scale.shape[1], -1)).mul_(factors(scale).mT[:, :, None])
    return masked(pooled(scores, codes.shape[1], pool), start, stop)


def score_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    *,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    start: Tensor | None = None,
    stop: Tensor | None = None,
) -> Tensor:
    """As topkit.kernels.score.score_lightning, head by head."""
    scale = (queries.shape[1] * queries.shape[3]) ** -0.5
    hits = torch.relu(_decoded(queries, query_scale) @ _decoded(keys, key_scale).mT)
    return masked((gates.mT[..., None] * scale * hits).sum(1, keepdim=True), start, stop)


def pooled(scores: Tensor, groups: int, pool: str | None) -> Tensor:
    """Scores [B, Hq, Tq, T] as one of each group, [B, Hk, Tq, T]."""
    if pool is None:
        return scores
    by_group = scores.unflatten(1, (groups, -1))
    if pool == "max":
        return by_group.amax(2)
    return by_group.mean(2) if pool == "mean" else by_group.sum(2)


def masked(scores: Tensor, start: Tensor | None, stop: Tensor | None) -> Tensor:
    """Scores [B, Hs, Tq, T], -inf before start [B] and from stop [B or 1, Tq] on."""
    slots = torch.arange(scores.shape[-1], device=scores.device)
    if start is not None:
        scores = scores.masked_fill(slots < start[:, None, None, None], float("-inf"))
    if stop is not None:
        scores = scores.masked_fill(slots >= stop[:, None, :, None], float("-inf"))
    return scores


def _decoded(vectors: Tensor, scale: Tensor | None) -> Tensor:
    vectors = vectors.float()
    return vectors if scale is None else vectors * factors(scale)
