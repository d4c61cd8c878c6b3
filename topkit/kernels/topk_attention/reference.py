"""Attention of each query over its own best keys: dense scores, masked, in one softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topkit.kernels.select_topk.reference import select_topk


def topk_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    *,
    scaling: float,
    start: Tensor | None = None,
) -> Tensor:
    """As topkit.kernels.topk_attention.topk_attention; holds all scores, and autograd differentiates it."""
    scores = products(queries, keys)
    seen = visible(queries.shape[2], keys.shape[2], start, queries.device)
    with torch.no_grad():
        chosen = best(scores.masked_fill(~seen, float("-inf")), kept)
    logits = scaling * scores.masked_fill(~chosen, float("-inf"))
    # A query that sees nothing has zeros, and no gradient.
    nothing = ~chosen.any(-1, keepdim=True)
    weights = logits.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    out = _by_group(weights, values) @ values.to(weights.dtype)
    return out.view(*scores.shape[:3], -1).to(queries.dtype)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """q . k of every query with every key of its group [B, Hq, Tq, T], in float32 or float64; differentiable."""
    return _Products.apply(queries, keys)  # type: ignore[no-any-return]


def uncast(tensor: Tensor) -> torch.autocast:
    """Within it no autocast rounds what decides which keys stay: they are the same in the gradient, outside of it."""
    return torch.autocast(tensor.device.type, enabled=False)


class _Products(torch.autograd.Function):
    """Of half types on a GPU torch multiplies into float32, and knows no derivative of that."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys)
        by_group = _by_group(queries, keys)
        if queries.is_cuda and queries.dtype in (torch.bfloat16, torch.float16):
            # Products of half types are exact in float32: nothing is converted, and tensor cores sum them.
            pairs = by_group.flatten(0, 1), keys.flatten(0, 1).mT
            scores = torch.bmm(*pairs, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
        else:
            dtype = torch.promote_types(queries.dtype, torch.float32)
            with uncast(queries):
                scores = by_group.to(dtype) @ keys.to(dtype).mT
        return scores.view(*queries.shape[:3], keys.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = ctx.saved_tensors
        of_scores = _by_group(grad, keys)
        with uncast(grad):
            of_queries = (of_scores @ keys.to(grad.dtype)).view_as(queries)
            of_keys = of_scores.mT @ _by_group(queries, keys).to(grad.dtype)
        return of_queries.to(queries.dtype), of_keys.to(keys.dtype)


def _by_group(per_head: Tensor, keys: Tensor) -> Tensor:
    """[B, Hq, n, m] -> [B, Hk, Hq / Hk * n, m]."""
    return per_head.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)


def visible(count: int, length: int, start: Tensor | None, device: torch.device) -> Tensor:
    """The slots that queries of the newest tokens see, [B or 1, 1, Tq, T]."""
    slots = torch.arange(length, device=device)
    seen = slots <= slots[length - count :, None]
    first = 0 if start is None else start[:, None, None, None]
    return seen[None, None] & (slots >= first)


def best(scores: Tensor, kept: Tensor) -> Tensor:
    """The `kept` best scores of each row, equal ones by the lowest slot: [B, Hq, Tq, T], bool.

    Shapes: scores [B, Hq, Tq, T], -inf for what is not seen; kept [B or 1, Tq].
    """
    slots = select_topk(scores, max(1, int(kept.max())))
    within = torch.arange(slots.shape[-1], device=slots.device) < kept[:, None, :, None]
    # One slot beyond the last takes those that are none.
    slots = slots.masked_fill((slots < 0) | ~within, scores.shape[-1])
    chosen = torch.zeros(*scores.shape[:-1], scores.shape[-1] + 1, dtype=torch.bool, device=scores.device)  # fmt: skip
    return chosen.scatter_(-1, slots, True)[..., :-1]
