"""Attention over chosen keys: gather, softmax in float32, weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError


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
) -> Tensor:
    """The attention output of each query over its chosen keys alone.

    Shapes: queries [B, Hq, Tq, D]; keys [B or 1, Hk, T, D]; values [B or 1, Hk, T, Dv]; indices
    [B, Hs, Tq, k] with Hs in {Hq, Hk, 1} and -1 for none; log_weights as indices, added to the
    scaled scores; rest_values [B, Hq, Tq, r, Dv] with rest_logits [B, Hq, Tq, r], which join the
    softmax, or rest_share, the part of the output each is given -> [B, Hq, Tq, Dv] in queries'
    dtype. A query that chose nothing gets zeros.
    """
    rows, heads, count, _ = queries.shape
    groups = keys.shape[1]
    if indices.shape[1] not in (heads, groups, 1):
        raise InputError(
            f"indices have {indices.shape[1]} heads; expected {heads} (query), {groups} (KV) or 1"
        )
    # Lists per group are gathered once for all heads of the group; other lists, per query head.
    lists = groups if indices.shape[1] in (1, groups) else heads
    picked = indices.expand(-1, lists, -1, -1) if indices.shape[1] == 1 else indices
    if log_weights is not None:
        log_weights = log_weights.expand_as(picked)
    row = torch.arange(rows, device=keys.device).clamp_max(keys.shape[0] - 1)[:, None, None, None]
    head = (torch.arange(lists, device=keys.device) * groups // lists)[:, None, None]
    slots = picked.clamp_min(0)
    chosen = keys[row, head, slots].float()  # [B, lists, Tq, k, D]
    asked = queries.float().reshape(rows, lists, heads // lists, count, -1).transpose(2, 3)
    logits = scaling * (asked @ chosen.mT)  # [B, lists, Tq, heads / lists, k]
    if log_weights is not None:
        logits = logits + log_weights[..., None, :]
    logits = logits.masked_fill((picked < 0)[..., None, :], float("-inf"))
    if rest_logits is not None:
        logits = torch.cat([logits, _by_list(rest_logits, lists)], -1)
    nothing = (logits == float("-inf")).all(-1, keepdim=True)
    weights = logits.softmax(-1).masked_fill(nothing, 0.0)
    kept = picked.shape[-1]
    out = weights[..., :kept] @ values[row, head, slots].float()
    if rest_values is not None:
        share = weights[..., kept:]
        if rest_share is not None:
            share = _by_list(rest_share, lists)
            out = out * (1 - share.sum(-1, keepdim=True))
        out = out + (share[..., None, :] @ _by_list(rest_values.float(), lists)).squeeze(-2)
    return out.transpose(2, 3).reshape(rows, heads, count, -1).to(queries.dtype)


def _by_list(per_head: Tensor, lists: int) -> Tensor:
    """[B, Hq, Tq, ...] -> [B, lists, Tq, Hq / lists, ...]."""
    return per_head.unflatten(1, (lists, -1)).transpose(2, 3)
