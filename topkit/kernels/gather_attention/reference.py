"""Attention over chosen keys: gather, softmax in float32, weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding

from topkit.errors import InputError
from topkit.kernels.gather_attention import long_lists
from topkit.kernels.gather_attention.softmax import PLAIN, Softmax
from topkit.kernels.score.reference import masked, score

# Gives the sums of chosen values [B, lists, Tq, n, Dv], by weights [B, lists, Tq, n, k] and slots [B, lists, Tq, k].
Weigh = Callable[[Tensor, Tensor], Tensor]


def gather_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    scaling: float,
    log_weights: Tensor | None = None,
    rest_values: Tensor | None = None,
    rest_logits: Tensor | None = None,
    rest_share: Tensor | None = None,
    softmax: Softmax = PLAIN,
) -> Tensor:
    """The attention output of each query over its chosen keys alone.

    Shapes: queries [B, Hq, Tq, D]; keys [B or 1, Hk, T, D]; values [B or 1, Hk, T, Dv]; indices
    [B, Hs, Tq, k] with Hs in {Hq, Hk, 1} and -1 for none; log_weights as indices, added to the
    scaled scores; rest_values [B, Hq, Tq, r, Dv] with rest_logits [B, Hq, Tq, r], which join the
    softmax, or rest_share, the part of the output that each makes up -> [B, Hq, Tq, Dv] in queries'
    dtype. A query that chose nothing gets zeros.
    """
    scores = gather_scores(queries, keys, indices)
    out = attend(
        scores,
        values,
        indices,
        scaling=scaling,
        log_weights=log_weights,
        rest_values=rest_values,
        rest_logits=rest_logits,
        rest_share=rest_share,
        softmax=softmax,
    )
    return out.to(queries.dtype)


def gather_scores(queries: Tensor, keys: Tensor, indices: Tensor) -> Tensor:
    """The dot products of each query with its chosen keys, [B, Hq, Tq, k] in float32; -inf for -1.

    Shapes: as `gather_attention`.
    """
    heads, groups, length = queries.shape[1], *keys.shape[1:3]
    if not indices.is_cuda and indices.numel() and (last := int(indices.max())) >= length:
        raise InputError(
            f"indices must be less than {length}, the slots that there are; got {last}"
        )
    picked = _lists(indices, heads, groups)
    grouped = _by_list(queries.float(), picked.shape[1])  # [B, lists, Tq, Hq / lists, D]
    if long_lists.long(picked, length, groups):
        scores = long_lists.scores(grouped, keys, picked)
    else:
        scores = grouped @ gathered(keys, picked).mT
    scores = scores.masked_fill((picked < 0)[..., None, :], float("-inf"))
    if scores.is_cuda:
        scores = scores.masked_fill((picked >= length)[..., None, :], float("nan"))
    return _by_head(scores)


def attend_all(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scaling: float,
    start: Tensor | None,
    stop: Tensor | None,
    softmax: Softmax = PLAIN,
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of queries over all slots that they see; zeros for none.

    Shapes: as topkit.kernels.gather_attention.attend_all.
    """
    logits = softmax.capped(scaling * masked(score(queries, keys), start, stop))
    weights = softmax.weights(logits)
    by_group = weights.unflatten(1, (values.shape[1], -1)).flatten(2, 3)
    # What no query sees may hold anything, and a weight of zero times infinity shows.
    unseen = (by_group == 0).all(2)[..., None]
    summed = by_group @ values.float().masked_fill(unseen, 0.0)
    return summed.view(*queries.shape[:3], -1).to(queries.dtype)


def attend(
    scores: Tensor,
    values: Tensor | Weigh,
    indices: Tensor,
    *,
    scaling: float,
    log_weights: Tensor | None = None,
    rest_values: Tensor | None = None,
    rest_logits: Tensor | None = None,
    rest_share: Tensor | None = None,
    softmax: Softmax = PLAIN,
) -> Tensor:
    """The values of chosen keys, weighted by the softmax of their scores: [B, Hq, Tq, Dv], float32.

    Shapes: scores [B, Hq, Tq, k], as `gather_scores` gives them; values, or what sums them, for lists
    that are each head's own; the others as `gather_attention`.
    """
    heads = scores.shape[1]
    picked = _lists(indices, heads, values.shape[1] if isinstance(values, Tensor) else heads)
    lists, kept = picked.shape[1], picked.shape[-1]
    logits = _by_list(softmax.capped(scaling * scores), lists)
    if log_weights is not None:
        logits = logits + log_weights.expand_as(picked)[..., None, :]
        logits = logits.masked_fill((picked < 0)[..., None, :], float("-inf"))
    if rest_logits is not None:
        logits = torch.cat([logits, _by_list(rest_logits, lists)], -1)
    there = logits.shape[-1]
    if softmax.sinks is not None:
        logits = torch.cat([logits, _by_list(softmax.of_heads(scores), lists)], -1)
    nothing = (logits == float("-inf")).all(-1, keepdim=True)
    weights = logits.softmax(-1).masked_fill(nothing, 0.0)
    weigh = partial(_weighted, values) if isinstance(values, Tensor) else values
    out = weigh(weights[..., :kept], picked)
    if rest_values is not None:
        share = weights[..., kept:there]
        if rest_share is not None:
            share = _by_list(rest_share, lists)
            out = out * (1 - share.sum(-1, keepdim=True))
        out = out + (share[..., None, :] @ _by_list(rest_values.float(), lists)).squeeze(-2)
    return _by_head(out)


def _lists(indices: Tensor, heads: int, groups: int) -> Tensor:
    """Indices as the lists that are gathered: per group where its heads share one, else per head."""
    if indices.shape[1] not in (heads, groups, 1):
        raise InputError(
            f"indices have {indices.shape[1]} heads; expected {heads} (query), {groups} (KV) or 1"
        )
    return indices.expand(-1, groups, -1, -1) if indices.shape[1] == 1 else indices


def _weighted(values: Tensor, weights: Tensor, picked: Tensor) -> Tensor:
    """The sums of the chosen values: weights [B, lists, Tq, n, k] -> [B, lists, Tq, n, Dv]."""
    out = None
    if long_lists.long(picked, values.shape[2], values.shape[1]):
        out = long_lists.weighted(weights, values, picked)
    return weights @ gathered(values, picked) if out is None else out


def gathered(cache: Tensor, picked: Tensor) -> Tensor:
    """The chosen rows of keys or values, [B, lists, Tq, k, D] in float32."""
    (rows, lists), length = picked.shape[:2], cache.shape[2]
    if length == 0:
        return cache.new_zeros(*picked.shape, cache.shape[3], dtype=torch.float32)
    row = torch.arange(rows, device=cache.device).clamp_max(cache.shape[0] - 1)
    head = torch.arange(lists, device=cache.device) * cache.shape[1] // lists
    table, (a_row, a_head, a_slot) = _table(cache)
    first = (row * a_row)[:, None] + head * a_head
    return embedding(first[..., None, None] + picked.clamp(0, length - 1) * a_slot, table).float()


def _table(cache: Tensor) -> tuple[Tensor, list[int]]:
    """A cache [B, H, T, D] as a view [n, D], and how far apart rows, heads and slots stand in it.

    Whole rows of one table are copied several times faster than what three indices point at.
    """
    cache = cache if cache.stride(3) == 1 else cache.contiguous()
    sizes, strides = cache.shape[:3], cache.stride()[:3]
    unit = math.gcd(*strides) or 1  # a cache that was cut or turned leaves gaps between its rows
    count = sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True)) // unit + 1
    return cache.as_strided((count, cache.shape[3]), (unit, 1)), [x // unit for x in strides]


def _by_list(per_head: Tensor, lists: int) -> Tensor:
    """[B, Hq, Tq, ...] -> [B, lists, Tq, Hq / lists, ...]."""
    return per_head.unflatten(1, (lists, -1)).transpose(2, 3)


def _by_head(per_list: Tensor) -> Tensor:
    """[B, lists, Tq, Hq / lists, ...] -> [B, Hq, Tq, ...]."""
    return per_list.transpose(2, 3).flatten(1, 2)
