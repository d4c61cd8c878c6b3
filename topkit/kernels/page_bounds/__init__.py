"""Pages of keys by their element-wise extremes: kept up to date, and scored."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.page_bounds import reference
from topkit.kernels.score.boundary import check_window

__all__ = ["append_bounds", "score_bounds"]

# What the Triton kernels take.
DTYPES = (torch.bfloat16, torch.float16)
WIDTHS = (64, 128)
LARGEST_PAGE, MOST_HEADS = 128, 64


def append_bounds(
    keys: Tensor,
    low: Tensor,
    high: Tensor,
    at: Tensor,
    *,
    page_size: int,
    start: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Writes the bounds of the page that the slot `at` stands in, of its keys up to there, in place.

    Shapes: keys [B, Hk, C, D], also those of the slots before; low, high [B, Hk, P, D]; at [1], which on a
    GPU is not looked at; start [B], where each row's first page begins.
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(keys=keys, low=low, high=high, at=at)
    checks.dims("keys", keys, 4)
    checks.beside(keys.device, low=low, high=high, at=at, start=start)
    for name, bounds in {"low": low, "high": high}.items():
        checks.typed(name, bounds, (keys.dtype,))
        checks.shaped(name, bounds, (*keys.shape[:2], low.shape[2], keys.shape[3]))
        checks.unexpanded(**{name: bounds})
    checks.typed("at", at, checks.PLACES)
    checks.shaped("at", at, (1,))
    own = _unsupported(page_size, keys=keys, low=low, high=high)
    if resolve(backend, keys, own) == "torch":
        reference.append_bounds(keys, low, high, at, page_size, start)
        return
    from topkit.kernels.page_bounds import triton_impl

    triton_impl.append_bounds(keys, low, high, at, page_size, start)


def score_bounds(
    queries: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    page_size: int,
    start: Tensor | None = None,
    stop: Tensor,
    backend: str = "auto",
) -> Tensor:
    """sum_i max(q_i low_i, q_i high_i) of every page, float32, -inf where a query sees none of its keys.

    Shapes: queries [B, Hq, Tq, D]; low, high [B, Hk, P, D]; start [B], where each row's first page begins;
    stop [B or 1, Tq] -> [B, Hq, Tq, P].
    Raises: InputError where shapes, dtypes or devices do not belong together.
    Source: Quest, arXiv 2406.10774, section 3.2.
    """
    checks.tensors(queries=queries, low=low, high=high, stop=stop)
    for name, tensor in {"queries": queries, "low": low, "high": high}.items():
        checks.dims(name, tensor, 4)
    checks.beside(queries.device, low=low, high=high)
    heads, groups = queries.shape[1], low.shape[1]
    if groups == 0 or heads % groups:
        raise InputError(f"low must have a divisor of {heads} heads (query); got {groups}")
    checks.shaped("low", low, (len(queries), groups, low.shape[2], queries.shape[3]))
    checks.shaped("high", high, low.shape)
    check_window(start, stop, queries)
    own = _unsupported(page_size, queries=queries, low=low, high=high)
    if own is None and heads // groups > MOST_HEADS:
        own = f"queries must have at most {MOST_HEADS} heads to a page's; got {heads // groups}"
    if resolve(backend, queries, own) == "torch":
        return reference.score_bounds(queries, low, high, page_size, start, stop)
    from topkit.kernels.page_bounds import triton_impl

    return triton_impl.score_bounds(queries, low, high, page_size, start, stop)


def _unsupported(page_size: int, **named: Tensor) -> str | None:
    """What the kernels do not take though the definitions do, as a sentence."""
    if page_size > LARGEST_PAGE:
        return f"page_size must be at most {LARGEST_PAGE}; got {page_size}"
    first = next(iter(named.values()))
    for name, tensor in named.items():
        if tensor.dtype not in DTYPES or tensor.dtype != first.dtype:
            return f"{name} must be bfloat16 or float16, all alike; got {tensor.dtype}"
        if tensor.shape[3] not in WIDTHS:
            return f"{name} must have 64 or 128 dimensions; got {tensor.shape[3]}"
    if first.shape[0] * named["low"].shape[1] > checks.MOST_BLOCKS:
        return f"low must be at most {checks.MOST_BLOCKS} rows x heads"
    return checks.ungraded(**named) or checks.unpacked(**named)
