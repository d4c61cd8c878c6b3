"""Query-key dot products, query heads sharing the key head of their group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import fp4
from topkit.kernels.blocks import blocks
from topkit.kernels.codes import by_word, decoder, factors

# Slots of a block, if there are so many: of many lists it then holds some.
NARROWEST = 256


def score(queries: Tensor, keys: Tensor) -> Tensor:
    """Float32 dot products of every query with every key of its group.

    Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D], Hq a multiple of Hk ->
    [B, Hq, Tq, T].
    Raises: InputError where it is none.
    """
    heads, groups = queries.shape[1], keys.shape[1]
    if groups == 0 or heads % groups:
        raise InputError(f"keys must have a divisor of {heads} heads (query); got {groups}")
    queries = queries.float()
    if keys.dtype != torch.float32 or len(keys) < len(queries):
        return _products(queries, keys, torch.Tensor.float)
    # Nothing is converted, and nothing read twice.
    by_group = queries.unflatten(1, (groups, -1)).flatten(2, 3)
    return (by_group @ keys.mT).view(*queries.shape[:3], keys.shape[2])


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
    """As topkit.kernels.score.score_codes, of keys that are decoded first, a block at a time."""
    queries = queries.float()
    if dtype in fp4.BLOCK:
        scores = _products(
            fp4.in_order(queries), codes, partial(fp4.decoded, dtype=dtype), blocked=scale
        )
        return masked(pooled(scores, codes.shape[1], pool), start, stop)
    # q . (2 b - 1) = 2 q . b - sum(q)
    offset = queries.sum(-1, keepdim=True) if dtype == "sign" else None
    vectors = by_word(2 * queries if dtype == "sign" else queries, dtype)
    decode = decoder(dtype, codes.shape[3], codes.device)
    scores = _products(vectors, codes, decode, offset, scale)
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
    asked, packed = fp4.kind_of(queries, query_scale), fp4.kind_of(keys, key_scale)
    if asked is not None and query_scale is not None:
        width = 2 * queries.shape[3]
        queries, query_scale = fp4.dequantize(queries, query_scale, asked, width), None
    scale = (queries.shape[1] * queries.shape[3]) ** -0.5
    if packed is not None and key_scale is not None:
        keys, key_scale = fp4.dequantize(keys, key_scale, packed, queries.shape[3]), None
    # All heads have one key: as queries of one head they read it once.
    vectors = _decoded(queries, query_scale).flatten(1, 2)[:, None]
    products = vectors @ _decoded(keys, key_scale).mT
    hits = torch.relu(products).view(*queries.shape[:3], keys.shape[2])
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
    """Scores [B, Hs, Tq, T], in place, -inf before start [B] and from stop [B or 1, Tq] on."""
    if scores.numel() == 0:
        return scores
    if scores.requires_grad:  # a maximum is kept for its gradient
        scores = scores.clone()
    # Of a GPU nobody waits to hear what all queries see.
    length, known = scores.shape[-1], scores.device.type == "cpu"
    slots = torch.arange(length, device=scores.device)
    if start is not None:
        end = max(0, int(start.max())) if known else length
        hidden = slots[:end] < start[:, None, None, None]
        scores[..., :end].masked_fill_(hidden, float("-inf"))
    if stop is not None:
        first = max(0, int(stop.min())) if known else 0
        hidden = slots[first:] >= stop[:, None, :, None]
        scores[..., first:].masked_fill_(hidden, float("-inf"))
    return scores


def _products(
    queries: Tensor,
    codes: Tensor,
    decode: Callable[..., Tensor],
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    blocked: Tensor | None = None,
) -> Tensor:
    """(queries . decode(codes) - offset) * scale [B, Hq, Tq, T], decoded a block at a time.

    `blocked`, scales of parts of a key [B or 1, Hk, T, n], goes to decode beside the codes.

    Shapes: queries [B, Hq, Tq, D] float32; codes [B or 1, Hk, T, W]; offset [B, Hq, Tq, 1]; scale
    [B or 1, Hk, T, 1]. Codes of one row are decoded once for all.
    """
    rows, heads, count, width = queries.shape
    groups, length = codes.shape[1:3]
    scores = queries.new_empty(rows, heads, count, length)
    if scores.numel() == 0:
        return scores
    # Of every list of keys [T, W] the queries that read it, by the rows that share it.
    lists = codes.flatten(0, 1)
    shape = (rows // len(codes), len(lists), heads // groups * count)
    queries, by_list = queries.reshape(*shape, width), scores.view(*shape, length)
    offset = None if offset is None else offset.reshape(*shape, 1)
    factor = None if scale is None else factors(scale).reshape(len(lists), 1, length)
    for part in blocks(len(lists), width * min(length, NARROWEST), codes.device):
        for slots in blocks(length, width * (part.stop - part.start), codes.device):
            scales = () if blocked is None else (blocked.flatten(0, 1)[part, slots],)
            keys = decode(lists[part, slots], *scales).mT
            for row in range(len(queries)):
                product = torch.bmm(queries[row, part], keys)
                if offset is not None:
                    product -= offset[row, part]
                if factor is not None:
                    product *= factor[part, :, slots]
                by_list[row, part, :, slots] = product
    return scores


def _decoded(vectors: Tensor, scale: Tensor | None) -> Tensor:
    vectors = vectors.float()
    return vectors if scale is None else vectors * factors(scale)
