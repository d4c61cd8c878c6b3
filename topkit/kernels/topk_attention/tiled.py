"""Top-k attention on any device, forward and backward a tile of queries at a time: memory linear in the keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topkit.kernels.topk_attention.cuts import Cuts, cuts_of_scores, seen_scores, tiles
from topkit.kernels.topk_attention.reference import uncast


def topk_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    *,
    scaling: float,
    start: Tensor | None = None,
) -> Tensor:
    """As topkit.kernels.topk_attention.topk_attention."""
    return _Tiled.apply(queries, keys, values, kept, scaling, start)  # type: ignore[no-any-return]


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        kept: Tensor,
        scaling: float,
        start: Tensor | None,
    ) -> Tensor:
        outputs: list[Tensor] = []
        cuts: list[Cuts] = []
        for part, seen in tiles(queries, keys):
            scores = seen_scores(queries[:, :, part], keys[:, :, :seen], start)
            cuts.append(cuts_of_scores(scores, kept[:, part]))
            weights = _weights(scores, cuts[-1], scaling)
            summed = _by_group(weights, values) @ values[:, :, :seen].to(weights.dtype)
            outputs.append(summed.view(*weights.shape[:3], -1))
        out = torch.cat(outputs, 2)
        ctx.save_for_backward(queries, keys, values, out)
        ctx.cuts, ctx.scaling, ctx.start = cuts, scaling, start
        return out.to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, out = ctx.saved_tensors
        dtype = out.dtype
        of_keys, of_values = (torch.zeros_like(x, dtype=dtype) for x in (keys, values))
        of_queries: list[Tensor] = []
        with uncast(queries):
            for (part, seen), cuts in zip(tiles(queries, keys), ctx.cuts, strict=True):
                # Scored as they were when they were cut, so that the same keys stay.
                scores = seen_scores(queries[:, :, part], keys[:, :, :seen], ctx.start)
                weights = _weights(scores, cuts, ctx.scaling)
                own, its_keys = queries[:, :, part].to(dtype), keys[:, :, :seen].to(dtype)
                its_values, by_output = values[:, :, :seen].to(dtype), grad[:, :, part].to(dtype)
                flat = _by_group(by_output, values)
                of_values[:, :, :seen] += _by_group(weights, values).mT @ flat
                of_weights = (flat @ its_values.mT).view_as(weights)
                mean = (by_output * out[:, :, part]).sum(-1, keepdim=True)
                # What was left out has weight zero, and so no gradient.
                of_scores = ctx.scaling * weights * (of_weights - mean)
                by_group = _by_group(of_scores, keys)
                of_queries.append((by_group @ its_keys).view_as(own))
                of_keys[:, :, :seen] += by_group.mT @ _by_group(own, keys)
        made = torch.cat(of_queries, 2).to(queries.dtype)
        return made, of_keys.to(keys.dtype), of_values.to(values.dtype), None, None, None


def _weights(scores: Tensor, cuts: Cuts, scaling: float) -> Tensor:
    """The softmax over what stays; zeros in a row of which nothing does."""
    keep = cuts.keep(scores)
    logits = scaling * scores.masked_fill(~keep, float("-inf"))
    return logits.softmax(-1).masked_fill_(~keep.any(-1, keepdim=True), 0.0)


def _by_group(per_head: Tensor, keys: Tensor) -> Tensor:
    """[B, Hq, n, m] -> [B, Hk, Hq / Hk * n, m]."""
    return per_head.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
