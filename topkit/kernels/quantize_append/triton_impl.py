"""New keys, encoded, into an index with room for them: a program a few keys of a head.

The bits are those of topkit.kernels.codes: divisions are rounded as IEEE says, additions made in its
order, and what it rounds is rounded by arithmetic that no device does otherwise.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.codes import LARGEST, PACKED_BITS
from topkit.kernels.pdl import wait_then_launch

# Keys of a program, where there are several.
ROWS = 16
# Added and subtracted again, it leaves a float below 2**22 rounded to the nearest even integer.
ROUNDING = tl.constexpr(1.5 * 2.0**23)


def quantize_append(
    keys: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    at: int | Tensor,
    *,
    dtype: str,
    hadamard: bool,
    pow2: bool,
    amax: float = 0.0,
) -> None:
    """As the reference's, of checked arguments."""
    rows, groups, new, dim = keys.shape
    loaded = isinstance(at, Tensor)
    per_row = at.stride(0) if isinstance(at, Tensor) and len(at) > 1 else 0
    exponents = scale is not None and scale.dtype == torch.int8
    block = 1 if new == 1 else ROWS
    if keys.numel() == 0:
        return
    with torch.cuda.device_of(keys):  # Triton launches on the current device
        _append[(triton.cdiv(new, block), rows * groups)](
            keys, keys.stride(), codes.view(torch.uint8), codes.stride(),
            scale, None if scale is None else scale.stride(), at, per_row,
            new, codes.shape[2], groups, dtype, PACKED_BITS.get(dtype, 8), LARGEST.get(dtype, 1),
            pow2, exponents, hadamard, loaded, dim, amax, block, num_warps=1 if block == 1 else 4,
            launch_pdl=has_pdl(keys.device),
        )  # fmt: skip


@triton.jit(do_not_specialize=["at"])
def _append(
    keys, keys_by, codes, codes_by, scale, scale_by, at, per_row, new, room, groups,
    DTYPE: tl.constexpr, BITS: tl.constexpr, LARGEST: tl.constexpr, POW2: tl.constexpr,
    EXPONENTS: tl.constexpr, HADAMARD: tl.constexpr, LOADED: tl.constexpr, DIM: tl.constexpr, AMAX: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    row, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    nth = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys += row.to(tl.int64) * keys_by[0] + group.to(tl.int64) * keys_by[1]
    place = keys + nth.to(tl.int64)[:, None] * keys_by[2] + tl.arange(0, DIM)[None, :]
    x = tl.load(place, mask=(nth < new)[:, None], other=0.0).to(tl.float32)
    if HADAMARD:
        x = rotated(x, DIM, ROWS)
    if LOADED:
        slot = tl.load(at + row * per_row).to(tl.int64) + nth
    else:
        slot = tl.full([ROWS], at, tl.int64) + nth
    there = (nth < new) & (slot >= 0) & (slot < room)
    if DTYPE == "sign":
        fields = (x >= 0).to(tl.int32)
    else:
        largest = tl.max(tl.abs(x), 1)
        broken = tl.sum((x != x).to(tl.int32), 1) > 0
        largest = tl.where(broken, float("nan"), tl.maximum(largest, AMAX))
        scales = tl.math.div_rn(largest, tl.full([ROWS], LARGEST, tl.float32))
        scales = tl.maximum(scales, 2.0**-126, propagate_nan=tl.PropagateNan.ALL)
        at_scale = scale + row.to(tl.int64) * scale_by[0] + group.to(tl.int64) * scale_by[1]
        if POW2:
            bits = scales.to(tl.int32, bitcast=True)
            exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
            exponent = tl.minimum(exponent, 254)
            scales = (exponent << 23).to(tl.float32, bitcast=True)
        if EXPONENTS:
            tl.store(at_scale + slot * scale_by[2], (exponent - 127).to(tl.int8), mask=there)
        else:
            tl.store(at_scale + slot * scale_by[2], scales, mask=there)
        fields = _fields(x, scales, DTYPE, LARGEST, DIM, ROWS)
    WIDTH: tl.constexpr = DIM * BITS // 8
    # Field j of a plane of WIDTH bytes stands in byte j % WIDTH.
    fields = tl.reshape(fields, [ROWS, DIM // WIDTH, WIDTH])
    planes = tl.arange(0, DIM // WIDTH)[None, :, None]
    packed = tl.sum(fields << (BITS * planes), 1).to(tl.uint8)
    codes += row.to(tl.int64) * codes_by[0] + group.to(tl.int64) * codes_by[1]
    place = codes + slot[:, None] * codes_by[2] + tl.arange(0, WIDTH)[None, :]
    tl.store(place, packed, mask=there[:, None])


@triton.jit
def _fields(x, scales, DTYPE: tl.constexpr, LARGEST: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Codes in the low bits of integers."""
    x = tl.math.div_rn(x, tl.broadcast_to(scales[:, None], [ROWS, DIM]))
    if DTYPE == "int8":
        fields = _nearest(x).to(tl.int32) & 0xFF
    elif DTYPE == "fp8_e4m3":
        fields = _e4m3(x)
    else:
        fields = tl.minimum(tl.maximum(tl.floor(x) + LARGEST, 0.0), 2.0 * LARGEST - 1.0)
        fields = fields.to(tl.int32)
    return fields


@triton.jit
def _nearest(x):
    """The nearest integer, the even one of two, of a float below 2**22."""
    return (x + ROUNDING) - ROUNDING


@triton.jit
def _e4m3(x):
    """The bits of float8_e4m3fn, rounded to the nearest, to the even one of two; at most 448."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0, propagate_nan=tl.PropagateNan.ALL)
    whole = size.to(tl.int32, bitcast=True)
    normal = ((whole + 0x7FFFF + ((whole >> 20) & 1)) >> 20) - (120 << 3)
    code = tl.where(size < 2.0**-6, _nearest(size * 512.0).to(tl.int32), normal)
    code = tl.where(x != x, 0x7F, code)
    return code | ((bits >> 24) & 0x80)


@triton.jit
def rotated(x, DIM: tl.constexpr, ROWS: tl.constexpr):
    """The orthonormal Walsh-Hadamard transform, in the order of topkit.kernels.codes."""
    for stage in tl.static_range(16):
        if (1 << stage) < DIM:
            pairs = tl.reshape(x, [ROWS, DIM // (2 << stage), 2, 1 << stage])
            a, b = tl.split(tl.permute(pairs, [0, 1, 3, 2]))
            x = tl.reshape(tl.permute(tl.join(a + b, a - b), [0, 1, 3, 2]), [ROWS, DIM])
    return x * (1.0 / DIM**0.5)
