"""Queries made ready to be multiplied by packed keys: once a list, by a kernel of its own.

A query is two columns of int8 (fp16 for fp8 and fp4 keys), its leading and its trailing digits, so that
15 of its bits (22) count. A row of keys holds several where they are short: each has columns of its own, which
are zero where another's bytes stand.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.fp4_fields import place_of
from topkit.kernels.score.layout import Layout
from topkit.kernels.score.sign_transform import all_set, summed, transform

# What the trailing digits of fp16 stand for, beside the leading.
TRAILING = tl.constexpr(2.0**-11)


def ready(queries: Tensor, groups: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """Columns and units of queries [B, Hk * group, Tq, D], as `of_list` reads them.

    Shapes: columns [B, Hk, Tq, planes * bytes * columns] int8 or float16; units [B, Hk, Tq, 2 * padded]
    float32: a score is the product's sum times a unit, and a number more.
    """
    rows, _, count, dim = queries.shape
    digits = torch.int8 if layout.bits else torch.float16
    columns = queries.new_empty(
        rows, groups, count, layout.planes * layout.bytes * layout.columns, dtype=digits
    )
    units = queries.new_empty(rows, groups, count, 2 * layout.padded, dtype=torch.float32)
    summed_up = queries.new_empty(rows, groups, count, layout.heads * dim, dtype=torch.float32)
    if units.numel():
        with torch.cuda.device_of(queries):  # Triton launches on the current device
            _ready[(rows * groups * count,)](
                queries, queries.stride(), summed_up, columns, units, groups, count, layout,
                num_warps=4, launch_pdl=has_pdl(queries.device),
            )  # fmt: skip
    return columns, units


@triton.jit
def _ready(queries, by, summed_up, columns, units, groups, count, LAYOUT: tl.constexpr):
    wait_then_launch()
    HEADS: tl.constexpr = LAYOUT.heads
    DIM: tl.constexpr = LAYOUT.dim
    BITS: tl.constexpr = LAYOUT.bits
    PLANES: tl.constexpr = LAYOUT.planes
    LENGTH: tl.constexpr = LAYOUT.operands[1]
    index = tl.program_id(0).to(tl.int64)
    query, group, batch = index % count, index // count % groups, index // count // groups
    far = by[1] + tl.zeros([], tl.int64)  # of a long prompt, heads are far apart
    queries += batch * by[0] + group * LAYOUT.group * by[1] + query * by[2]
    summed_up += index * (HEADS * DIM)
    columns += index * (LAYOUT.planes * LAYOUT.bytes * LAYOUT.columns)
    units += index * (2 * LAYOUT.padded)
    dim = tl.arange(0, DIM)
    for head in tl.static_range(HEADS):
        if LAYOUT.dtype == "sign":
            transform(
                queries + head * far, far, LAYOUT.summands, summed_up + head * DIM, LAYOUT.width
            )
        else:
            q = summed(queries + head * far, far, LAYOUT.summands, dim, True)
            tl.store(summed_up + head * DIM + dim, q)
    tl.debug_barrier()  # what one thread wrote another reads
    head = tl.arange(0, LAYOUT.padded)
    place, there = summed_up + head[:, None] * DIM + dim[None, :], (head < HEADS)[:, None]
    whole = tl.load(place, mask=there, other=0.0)
    unit = _unit(tl.max(tl.abs(whole), 1), BITS)
    if LAYOUT.dtype == "sign":
        total = tl.sum(whole * all_set(dim, LAYOUT.width)[None, :], 1)
    else:
        total = 0.5 * tl.sum(whole, 1)
    unit = tl.where(total == total, unit, total)  # NaN, which integers would hide
    column, byte = tl.arange(0, LAYOUT.columns), tl.arange(0, LAYOUT.bytes)
    head = ((column // 2) % LAYOUT.padded)[None, :]
    own = (byte // LAYOUT.width)[:, None] == (column // (2 * LAYOUT.padded))[None, :]
    own = own & (head < HEADS)
    whole = tl.load(summed_up + head * DIM + dim[:, None], mask=head < HEADS, other=0.0)
    units_of = _unit(tl.max(tl.abs(whole), 0), BITS)[None, :]
    for plane in tl.static_range(PLANES):
        if LAYOUT.blocked:  # a byte holds two neighbours
            there = (2 * byte + plane)[:, None]
        else:
            there = (plane * LAYOUT.width + byte % LAYOUT.width)[:, None]
        q = tl.load(summed_up + head * DIM + there, mask=own, other=0.0) / units_of
        digits = _digits(q, (column % 2 == 1)[None, :], BITS)
        if LAYOUT.blocked:
            at = column[None, :] * LENGTH + place_of(byte, plane, LAYOUT)[:, None]
        else:
            at = (plane * LAYOUT.columns + column)[None, :] * LENGTH + byte[:, None]
        tl.store(columns + at, digits)
    # A score is unit * product + total; a sign is worth twice its bit, minus one.
    if LAYOUT.dtype == "sign":
        unit *= 2.0
    elif BITS > 0:
        unit *= 1.0 / (1 << (8 - BITS))
    else:
        unit *= LAYOUT.worth
    if LAYOUT.pool == "mean":
        unit *= 1.0 / LAYOUT.group
        total *= 1.0 / LAYOUT.group
    head = tl.arange(0, LAYOUT.padded)
    tl.store(units + head, unit)
    tl.store(units + LAYOUT.padded + head, total)


@triton.jit
def of_list(columns, by, units, units_by, batch, group, query, LAYOUT: tl.constexpr):
    """What `ready` made of a list's queries: a unit and a number a head, and columns, a plane each.

    It may be read before the kernel before has ended: past the first-level cache, which may hold what
    was there before.
    """
    batch, group, query = batch.to(tl.int64), group.to(tl.int64), query.to(tl.int64)
    columns += batch * by[0] + group * by[1] + query * by[2]
    units += batch * units_by[0] + group * units_by[1] + query * units_by[2]
    PLANES: tl.constexpr = LAYOUT.operands[0]
    LENGTH: tl.constexpr = LAYOUT.operands[1]
    head, byte = tl.arange(0, LAYOUT.padded), tl.arange(0, LENGTH)
    unit = tl.load(units + head, cache_modifier=".cg")
    total = tl.load(units + LAYOUT.padded + head, cache_modifier=".cg")
    # A column's bytes one behind the other, as the product wants them.
    column = tl.arange(0, LAYOUT.columns)
    planes = ()
    for plane in tl.static_range(PLANES):
        at = (plane * LAYOUT.columns + column)[None, :] * LENGTH + byte[:, None]
        planes = planes + (tl.load(columns + at, cache_modifier=".cg"),)  # noqa: RUF005 - Triton has no other way
    return unit, total, planes


@triton.jit
def _unit(largest, BITS: tl.constexpr):
    """What a query's last leading digit is worth, by its largest magnitude."""
    if BITS == 0:  # a power of two, which leaves bf16 queries exact
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        unit = tl.maximum(exponent, 0x00800000).to(tl.float32, bitcast=True)
    else:
        unit = tl.maximum(largest, 1e-30) / 32639  # 127 * 256 + 127
    return unit


@triton.jit
def _digits(q, trailing, BITS: tl.constexpr):
    """The leading or the trailing digits of queries in units."""
    if BITS == 0:
        leading = q.to(tl.float16)
        rest = ((q - leading.to(tl.float32)) / TRAILING).to(tl.float16)
        digits = tl.where(trailing, rest, leading)
    else:
        whole = tl.floor(q + 0.5).to(tl.int32)
        leading = (whole + 128) >> 8
        digits = tl.where(trailing, whole - (leading << 8), leading).to(tl.int8)
    return digits
