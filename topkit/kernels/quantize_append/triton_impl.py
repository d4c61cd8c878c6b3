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
from topkit.kernels.fp4 import BLOCK
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.quantize_append.e4m3 import e4m3, nearest
from topkit.kernels.quantize_append.fp4_blocks import in_blocks

# Keys of a program, where there are several.
ROWS = 16


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
    if scale is not None and dtype in BLOCK:
        scale = scale.view(torch.uint8)
    block = 1 if new == 1 else ROWS
    if keys.numel() == 0:
        return
    with torch.cuda.device_of(keys):  # Triton launches on the current device
        _append[(triton.cdiv(new, block), rows * groups)](
            keys, keys.stride(), codes.view(torch.uint8), codes.stride(),
            scale, None if scale is None else scale.stride(), at, per_row,
            new, codes.shape[2], groups, dtype, PACKED_BITS.get(dtype, 8), LARGEST.get(dtype, 1),
            BLOCK.get(dtype, 0), pow2, exponents, hadamard, loaded, dim, amax, block, num_warps=1 if block == 1 else 4,
            launch_pdl=has_pdl(keys.device),
        )  # fmt: skip


@triton.jit(do_not_specialize=["at"])
def _append(
    keys, keys_by, codes, codes_by, scale, scale_by, at, per_row, new, room, groups,
    DTYPE: tl.constexpr, BITS: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
    POW2: tl.constexpr, EXPONENTS: tl.constexpr, HADAMARD: tl.constexpr, LOADED: tl.constexpr,
    DIM: tl.constexpr, AMAX: tl.constexpr, ROWS: tl.constexpr,
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
    codes += row.to(tl.int64) * codes_by[0] + group.to(tl.int64) * codes_by[1]
    if DTYPE != "sign":
        scale += row.to(tl.int64) * scale_by[0] + group.to(tl.int64) * scale_by[1]
    if BLOCK > 0:
        packed, held = in_blocks(x, DTYPE, BLOCK, DIM, ROWS)
        place = scale + slot[:, None] * scale_by[2] + tl.arange(0, DIM // BLOCK)[None, :]
        tl.store(place, held, mask=there[:, None])
    else:
        if DTYPE == "sign":
            fields = (x >= 0).to(tl.int32)
        else:
            scales, exponent = _scales(x, LARGEST, POW2, AMAX, ROWS)
            stored = (exponent - 127).to(tl.int8) if EXPONENTS else scales
            tl.store(scale + slot * scale_by[2], stored, mask=there)
            fields = _fields(x, scales, DTYPE, LARGEST, DIM, ROWS)
        # Field j of a plane of some bytes stands in that byte.
        fields = tl.reshape(fields, [ROWS, 8 // BITS, DIM * BITS // 8])
        planes = tl.arange(0, 8 // BITS)[None, :, None]
        packed = tl.sum(fields << (BITS * planes), 1).to(tl.uint8)
    place = codes + slot[:, None] * codes_by[2] + tl.arange(0, packed.shape[1])[None, :]
    tl.store(place, packed, mask=there[:, None])


@triton.jit
def _scales(x, LARGEST: tl.constexpr, POW2: tl.constexpr, AMAX: tl.constexpr, ROWS: tl.constexpr):
    """The scale of each key, and its exponent by its bits, which is one where POW2 asks for it."""
    largest = tl.max(tl.abs(x), 1)
    broken = tl.sum((x != x).to(tl.int32), 1) > 0
    largest = tl.where(broken, float("nan"), tl.maximum(largest, AMAX))
    scales = tl.math.div_rn(largest, tl.full([ROWS], LARGEST, tl.float32))
    scales = tl.maximum(scales, 2.0**-126, propagate_nan=tl.PropagateNan.ALL)
    bits = scales.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    exponent = tl.minimum(exponent, 254)
    if POW2:
        scales = (exponent << 23).to(tl.float32, bitcast=True)
    return scales, exponent


@triton.jit
def _fields(x, scales, DTYPE: tl.constexpr, LARGEST: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Codes in the low bits of integers."""
    x = tl.math.div_rn(x, tl.broadcast_to(scales[:, None], [ROWS, DIM]))
    if DTYPE == "int8":
        fields = nearest(x).to(tl.int32) & 0xFF
    elif DTYPE == "fp8_e4m3":
        fields = e4m3(x)
    else:
        fields = tl.minimum(tl.maximum(tl.floor(x) + LARGEST, 0.0), 2.0 * LARGEST - 1.0)
        fields = fields.to(tl.int32)
    return fields


@triton.jit
def rotated(x, DIM: tl.constexpr, ROWS: tl.constexpr):
    """The orthonormal Walsh-Hadamard transform, in the order of topkit.kernels.codes."""
    for stage in tl.static_range(16):
        if (1 << stage) < DIM:
            pairs = tl.reshape(x, [ROWS, DIM // (2 << stage), 2, 1 << stage])
            a, b = tl.split(tl.permute(pairs, [0, 1, 3, 2]))
            x = tl.reshape(tl.permute(tl.join(a + b, a - b), [0, 1, 3, 2]), [ROWS, DIM])
    return x * (1.0 / DIM**0.5)
