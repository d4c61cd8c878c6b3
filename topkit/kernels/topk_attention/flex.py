"""Top-k attention on a GPU: flash attention, by FlexAttention, in which a key stays where its score passes the row's cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from topkit.kernels.topk_attention.cuts import Cuts

# How far a score of bf16 products, summed in float32 in another order, may be off.
SLACK = 2e-6


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cuts: Cuts,
    *,
    scaling: float,
    start: Tensor | None = None,
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] over what the cuts keep; differentiable."""
    score_mod = _score_mod(cuts, scaling)
    mask = _block_mask(start, queries.shape[2], keys.shape[2], queries.device)
    grouped = queries.shape[1] != keys.shape[1]
    return _compiled()(
        queries, keys, values, score_mod=score_mod, block_mask=mask, scale=scaling, enable_gqa=grouped
    )  # fmt: skip


def _score_mod(cuts: Cuts, scaling: float) -> Callable[..., Tensor]:
    """What leaves a score, or makes it -inf. Rows without a tie, which is nearly all, need one number."""
    high = cuts.high * scaling
    if not bool((cuts.last >= 0).any()):

        def untied(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return torch.where(score > high[b, h, q], score, -float("inf"))

        return untied
    low, last = cuts.low * scaling, cuts.last

    def tied(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        equal = (score > low[b, h, q]) & (k <= last[b, h, q])
        return torch.where(equal | (score > high[b, h, q]), score, -float("inf"))

    return tied


def _block_mask(
    start: Tensor | None, count: int, length: int, device: torch.device
) -> BlockMask:  # fmt: skip
    if start is None:
        return _causal(count, length, str(device))

    def padded(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q + (length - count)) & (k >= start[b])

    return create_block_mask(padded, len(start), None, count, length, device=str(device))


@cache
def _causal(count: int, length: int, device: str) -> BlockMask:
    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q + (length - count)

    return create_block_mask(causal, None, None, count, length, device=device)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)
