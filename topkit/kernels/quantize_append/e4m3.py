"""Floats rounded to the nearest of a few, by arithmetic that no device does otherwise than torch."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

# Added and subtracted again, it leaves a float below 2**22 rounded to the nearest even integer.
ROUNDING = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def nearest(x):
    """The nearest integer, the even one of two, of a float below 2**22."""
    return (x + ROUNDING) - ROUNDING


@triton.jit
def e4m3(x):
    """The bits of float8_e4m3fn, rounded to the nearest, to the even one of two; at most 448."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0, propagate_nan=tl.PropagateNan.ALL)
    whole = size.to(tl.int32, bitcast=True)
    normal = ((whole + 0x7FFFF + ((whole >> 20) & 1)) >> 20) - (120 << 3)
    code = tl.where(size < 2.0**-6, nearest(size * 512.0).to(tl.int32), normal)
    code = tl.where(x != x, 0x7F, code)
    return code | ((bits >> 24) & 0x80)
