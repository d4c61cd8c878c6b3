"""Dot products of queries with the keys themselves, of the slots that each query sees."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.score.boundary import check_window
from topkit.kernels.score_keys import reference

__all__ = ["score_keys"]

# What the Triton kernel takes. Heads of one KV head are rows of a matrix product, in registers.
DTYPES = (torch.bfloat16, torch.float16)
WIDTHS = (64, 128)
MOST_HEADS = 64


def score_keys(
    queries: Tensor,
    keys: Tensor,
    *,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Float32 dot products of every query with every key of its group, -inf where it does not see the slot.

    Shapes: queries [B, Hq, Tq, D]; keys [B or 1, Hk, T, D]; start [B], stop [B or 1, Tq], query i sees the
    slots start <= s < stop[i] (None: all) -> [B, Hq, Tq, T].
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(queries=queries, keys=keys)
    _check(queries, keys)
    check_window(start, stop, queries)
    if resolve(backend, queries, _unsupported(queries, keys)) == "torch":
        return reference.score_keys(queries, keys, start=start, stop=stop)
    from topkit.kernels.score_keys import triton_impl

    return triton_impl.score_keys(queries, keys, start, stop)


def _check(queries: Tensor, keys: Tensor) -> None:
    checks.dims("queries", queries, 4)
    checks.dims("keys", keys, 4)
    checks.beside(queries.device, keys=keys)
    (rows, heads, _, width), groups = queries.shape, keys.shape[1]
    if groups == 0 or heads % groups:
        raise InputError(f"keys must have a divisor of {heads} heads (query); got {groups}")
    checks.shaped("keys", keys, (rows, groups, keys.shape[2], width), one_row=True)


def _unsupported(queries: Tensor, keys: Tensor) -> str | None:
    """What the kernel does not take though the definition does, as a sentence."""
    for name, tensor in {"queries": queries, "keys": keys}.items():
        if tensor.dtype not in DTYPES or tensor.dtype != queries.dtype:
            return f"{name} must be bfloat16 or float16, both alike; got {tensor.dtype}"
    (rows, heads, count, width), groups = queries.shape, keys.shape[1]
    if width not in WIDTHS:
        return f"queries must have 64 or 128 dimensions; got {width}"
    if heads // groups > MOST_HEADS:
        return f"queries must have at most {MOST_HEADS} heads to a key's; got {heads // groups}"
    if count > checks.MOST_BLOCKS or rows * groups > checks.MOST_BLOCKS:
        return (
            f"queries must be at most {checks.MOST_BLOCKS} to a head, as must rows x heads of keys"
        )
    named = {"queries": queries, "keys": keys}
    return checks.ungraded(**named) or checks.unpacked(**named)
