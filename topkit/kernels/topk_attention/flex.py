"""Top-k attention on a GPU: flash attention, by FlexAttention, in which a key stays where its score passes the row's cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from topkit.kernels.topk_attention.cuts import SLACK, Cuts

__all__ = ["SLACK", "attend", "block_mask"]

# Queries, and keys, of a block of FlexAttention.
SIZE = 128


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
    sizes = queries.shape[2], keys.shape[2], queries.device
    mask = _causal(*sizes) if start is None else block_mask(start, *sizes)
    grouped = queries.shape[1] != keys.shape[1]
    return _compiled()(
        queries, keys, values, score_mod=score_mod, block_mask=mask, scale=scaling, enable_gqa=grouped
    )  # fmt: skip


def _score_mod(cuts: Cuts, scaling: float) -> Callable[..., Tensor]:
    """What leaves a score, or makes it -inf.

    One form for rows that are tied where they are cut, a few in a hundred thousand, and all others: what would
    choose between two waits for the GPU.
    """
    low, high, last = cuts.low * scaling, cuts.high * scaling, cuts.last

    def cut(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        bar = torch.where(k <= last[b, h, q], low[b, h, q], high[b, h, q])
        return torch.where(score > bar, score, -float("inf"))

    return cut


def block_mask(start: Tensor | None, count: int, length: int, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of queries sees: from `start` [B] on, up to itself.

    Made from blocks: `create_block_mask` holds every pair of a query and a key, a gigabyte at 32K.
    """
    ahead = length - count
    first_q, last_q = _ends(count, device)
    first_k, last_k = _ends(length, device)
    begin = torch.zeros(1, dtype=torch.long, device=device) if start is None else start
    begin = begin[:, None, None, None]
    some = (first_k <= last_q[:, None] + ahead) & (last_k >= begin)
    whole = (last_k <= first_q[:, None] + ahead) & (first_k >= begin)
    # A block that reaches beyond the last query or key is looked at key by key.
    whole = whole & (last_k - first_k == SIZE - 1) & (last_q - first_q == SIZE - 1)[:, None]

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = k <= q + ahead
        return own if start is None else own & (k >= start[b])

    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=SIZE,
        mask_mod=seen,
        seq_lengths=(count, length),
    )


@lru_cache(16)
def _causal(count: int, length: int, device: torch.device) -> BlockMask:
    """The blocks of queries that see all earlier keys, which are the same at each layer and step.

    Also of a step that trains, after one in inference mode: that cannot save tensors that were made in there.
    """
    with torch.inference_mode(False):
        return block_mask(None, count, length, device)


def _ends(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first and the last place of each block."""
    first = torch.arange(0, count, SIZE, device=device)
    return first, (first + SIZE - 1).clamp_max(count - 1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, in order, those that it has not last."""
    order = (~blocks).int().argsort(dim=-1, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)
