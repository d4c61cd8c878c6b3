"""Scores as integers that stand in their order."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

# What `_ordered` makes of -inf and inf, and what is below any.
MINUS_INFINITY = tl.constexpr(-2139095041)
INFINITY = tl.constexpr(0x7F800000)
LOWEST = tl.constexpr(-(2**31))
NOT_A_NUMBER = tl.constexpr(2**31 - 1)


@triton.jit
def _ordered(x):
    """Integers that stand in the order of the floats; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def keys_of(x):
    """Scores in the order of integers: LOWEST for -inf, which may not be chosen; NaN above all."""
    key = _ordered(x)
    return tl.where(x == x, tl.where(key > MINUS_INFINITY, key, LOWEST), NOT_A_NUMBER)


@triton.jit
def float_of(key):
    """The float that stands at a place in the order."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
