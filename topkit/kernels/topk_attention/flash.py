"""Top-k attention on a GPU by kernels of its own: flash attention that knows each row's cut, and its best score."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from topkit.kernels import backend
from topkit.kernels.topk_attention import flash_kernels
from topkit.kernels.topk_attention.cuts import SLACK, Cuts

__all__ = ["SLACK", "attend"]


class Config(NamedTuple):
    """How a pass is cut up."""

    queries: int
    keys: int
    warps: int
    stages: int


class Configs(NamedTuple):
    """Those of the three passes. Queries of `keys_and_values` divide those of `forward`."""

    forward: Config
    queries: Config
    keys_and_values: Config


# By head dimension, up to it. Hopper's products take more queries at a time than others have registers for.
CONFIGS = {
    64: Configs(Config(128, 128, 8, 3), Config(128, 64, 8, 3), Config(64, 128, 8, 3)),
    128: Configs(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
}
OTHERS = {
    64: Configs(Config(128, 64, 4, 3), Config(64, 64, 4, 3), Config(64, 64, 4, 2)),
    128: Configs(Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(32, 64, 4, 2)),
}


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
    return _Flash.apply(queries, keys, values, cuts, scaling, start)  # type: ignore[no-any-return]


def configs(queries: Tensor, values: Tensor) -> Configs:
    """Those for the head dimensions of queries and values, and their GPU."""
    of = CONFIGS if backend.interpreted() or backend.capability(queries.device)[0] >= 9 else OTHERS
    return of[64 if max(queries.shape[3], values.shape[3]) <= 64 else 128]


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cuts: Cuts,
        scaling: float,
        start: Tensor | None,
    ) -> Tensor:
        queries, keys, values = (_rows(x) for x in (queries, keys, values))
        start = None if start is None else start.contiguous()
        (rows, heads, count, dim), (_, groups, length, wide) = queries.shape, values.shape
        config = configs(queries, values).forward
        blocks = triton.cdiv(count, config.queries)
        out = torch.empty(rows, heads, count, wide, dtype=queries.dtype, device=queries.device)
        lse = torch.empty(rows, heads, count, dtype=torch.float32, device=queries.device)
        ties = torch.empty(rows * heads, blocks, dtype=torch.int32, device=queries.device)
        with torch.cuda.device_of(queries):  # Triton launches on the current device
            flash_kernels.attend[(blocks, rows * heads)](
                queries, queries.stride(), keys, keys.stride(), values, values.stride(),
                cuts.low, cuts.high, cuts.last, cuts.top, start, out, lse, ties,
                count, length - count, heads, heads // groups, scaling / math.log(2),
                dim, wide, config.queries, config.keys, _upcast(queries), config.stages, num_warps=config.warps,
            )  # fmt: skip
        ctx.save_for_backward(queries, keys, values, cuts.low, cuts.high, cuts.last, start, out, lse, ties)  # fmt: skip
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, low, high, last, start, out, lse, ties = ctx.saved_tensors
        (rows, heads, count, dim), (_, groups, length, wide) = queries.shape, values.shape
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        made = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (queries, keys, values)]  # fmt: skip
        shared = (queries, queries.stride(), keys, keys.stride(), values, values.stride(), low, high, last, start)  # fmt: skip
        scales = (heads, heads // groups, ctx.scaling / math.log(2), ctx.scaling)
        its, of_queries, of_keys = configs(queries, values)
        with torch.cuda.device_of(queries):
            flash_kernels.of_queries[(triton.cdiv(count, of_queries.queries), rows * heads)](
                *shared, out, lse, grad, delta, made[0], count, length - count, *scales,
                dim, wide, of_queries.queries, of_queries.keys, _upcast(queries), of_queries.stages,
                num_warps=of_queries.warps,
            )  # fmt: skip
            flash_kernels.of_keys_and_values[(triton.cdiv(length, of_keys.keys), rows * groups)](
                *shared, lse, ties, grad, delta, made[1], made[2], count, length, *scales,
                dim, wide, of_keys.queries, of_keys.keys, its.queries, _upcast(queries), of_keys.stages,
                num_warps=of_keys.warps,
            )  # fmt: skip
        return *made, None, None, None


def _rows(x: Tensor) -> Tensor:
    """With vectors that lie in one piece."""
    return x if x.stride(3) == 1 else x.contiguous()


def _upcast(queries: Tensor) -> bool:
    """Triton's interpreter multiplies the bits of bfloat16."""
    return backend.interpreted() and queries.dtype == torch.bfloat16
