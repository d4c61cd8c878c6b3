"""Keys encoded in blocks of fp4, to the bits of topkit.kernels.fp4."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.fp4 import LARGEST
from topkit.kernels.quantize_append.e4m3 import e4m3

TOP = tl.constexpr(LARGEST)


@triton.jit
def in_blocks(x, DTYPE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Codes [R, D / 2] of keys [R, D], and the scales of their blocks [R, D / BLOCK], as bytes."""
    x = tl.reshape(x, [ROWS, DIM // BLOCK, BLOCK])
    broken = tl.sum((x != x).to(tl.int32), 2) > 0
    most = tl.where(broken, float("nan"), tl.max(tl.abs(x), 2))
    share = tl.math.div_rn(most, tl.full([ROWS, DIM // BLOCK], TOP, tl.float32))
    if DTYPE == "mxfp4":
        # The next power of two: what is not finite becomes e8m0's NaN, what is least has a scale.
        bits = share.to(tl.int32, bitcast=True)
        held = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
        held = tl.minimum(tl.maximum(held, 1), 255)
        factor = (held << 23).to(tl.float32, bitcast=True)
    else:
        share = tl.maximum(share, 2.0**-9, propagate_nan=tl.PropagateNan.ALL)
        held = e4m3(share)
        factor = _factor(held)
    x = tl.math.div_rn(x, tl.broadcast_to(factor[:, :, None], [ROWS, DIM // BLOCK, BLOCK]))
    code = _e2m1(tl.abs(x)) | ((x.to(tl.int32, bitcast=True) >> 28) & 8)
    # Element 2 j is the low half of byte j.
    halves = tl.reshape(code, [ROWS, DIM // 2, 2])
    packed = tl.sum(halves << (4 * tl.arange(0, 2)[None, None, :]), 2)
    return packed.to(tl.uint8), held.to(tl.uint8)


@triton.jit
def _e2m1(size):
    """The place of the nearest magnitude, of two the even one."""
    return (
        (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
        + (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
        + (size > 5.0).to(tl.int32)
    )  # fmt: skip


@triton.jit
def _factor(held):
    """float8_e4m3fn of these bits, none of them negative, in float32."""
    normal = ((held << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    factor = tl.where(held < 8, held.to(tl.float32) * 2.0**-9, normal)
    return tl.where(held == 0x7F, float("nan"), factor)
