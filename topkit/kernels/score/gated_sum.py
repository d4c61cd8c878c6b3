"""Lightning's sum over heads of products of fp4: what is positive of each, times its head's unit.

mxfp4: products are float16, of which a register holds two, and tensor cores add up what is positive of them:
units are two columns of float16, their leading and their trailing digits, and sums are float32. A sum of products
is at most 4608 of two e2m1, and 18432 of what stands for them (topkit.kernels.score.fp4_fields).
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

# Of the product with units: as few as a warp multiplies alone, without the three others.
COLUMNS = tl.constexpr(8)


@triton.jit
def shared_unit(unit):
    """The largest power of two in units [H], which are then float16 numbers of less than two."""
    exponent = tl.max(tl.abs(unit), 0).to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(tl.maximum(exponent, 0x00800000), 0x7F000000).to(tl.float32, bitcast=True)


@triton.jit
def gated_sum(x, columns, unit, shared, LAYOUT: tl.constexpr):
    """Twice the sums [R] of operands [R, W] times columns [W, H], with units [H] in shared ones [H], all alike."""
    # What is positive comes twice, at half of the cost of a maximum; NaN stays.
    if LAYOUT.dtype == "mxfp4":
        products = tl.dot(x, columns, out_dtype=tl.float16)
        sums = tl.sum(tl.dot(products + tl.abs(products), digits(unit, COLUMNS)), 1)
    else:
        products = tl.dot(x, columns)
        sums = tl.sum((products + tl.abs(products)) * unit[None, :], 1)
    return sums * tl.max(shared, 0)


@triton.jit
def digits(unit, COLUMNS: tl.constexpr):
    """Units [H] as columns [H, COLUMNS], the others zero."""
    column = tl.arange(0, COLUMNS)[None, :]
    leading = unit.to(tl.float16)
    trailing = (unit - leading.to(tl.float32)).to(tl.float16)
    both = tl.where(column == 0, leading[:, None], trailing[:, None])
    return tl.where(column < 2, both, 0.0)
