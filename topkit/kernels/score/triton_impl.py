"""Scores of queries against packed keys, on tensor cores.

Keys stay in the bits that they are stored in: fields of 2 or 4 bits are moved to the top of their byte,
four at a time, and multiplied as int8; signs are not even cut out (topkit.kernels.score.sign_transform). The
heads of a group are columns of one product (topkit.kernels.score.queries), and at least 32 bytes of keys
one row of it.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels import fp4
from topkit.kernels.backend import has_pdl, interpreted, multiprocessors
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.fp4_fields import crossed, fields, scales_of, side_by_side, uncrossed
from topkit.kernels.score.fp4_queries import ready_packed
from topkit.kernels.score.gated_sum import gated_sum
from topkit.kernels.score.layout import Config, Layout, Source
from topkit.kernels.score.queries import TRAILING, of_list, ready

PLAIN = tl.constexpr(interpreted())  # the interpreter has no inline assembly
# Of programs with fewer tiles more is lost while they start; with more, while the last ones end.
CONFIGS = {
    "sign": Config(128, 6, 4, 3),
    "int2": Config(128, 8, 4, 3),
    "int4": Config(128, 8, 4, 3),
    "int8": Config(128, 8, 4, 4),
    "fp8_e4m3": Config(128, 8, 4, 4),
    "mxfp4": Config(128, 8, 4, 3),
    "nvfp4": Config(128, 8, 4, 3),
    "lightning fp8_e4m3": Config(128, 8, 4, 3),
    # A program begins slowly, so it has many tiles; five fit into a multiprocessor's registers, not four.
    "lightning mxfp4": Config(128, 64, 4, 3, 96, 5),
    "lightning nvfp4": Config(128, 8, 4, 3),
}


def of_codes(
    queries: Tensor, codes: Tensor, dtype: str, scale: Tensor | None, pool: str | None
) -> tuple[Source, Layout]:
    """What `score_codes` takes, of topkit.kernels.score.score_codes's checked arguments."""
    rows, heads, _, dim = queries.shape
    groups, pow2 = codes.shape[1], scale is not None and scale.dtype == torch.int8
    layout = Layout(dtype, dim, heads // groups, pool or "none", pow2)
    columns, units = ready(queries, groups, layout)
    scale = _for_rows(_stored(scale, layout), rows)
    return Source(columns, _for_rows(codes, rows), scale, units), layout


def of_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    query_scale: Tensor | None,
    key_scale: Tensor | None,
) -> tuple[Source, Layout]:
    """The same of topkit.kernels.score.score_lightning's, with both scales."""
    assert query_scale is not None and key_scale is not None
    rows, heads, _, dim = queries.shape
    packed = fp4.kind_of(keys, key_scale)
    if packed is None:
        layout = Layout("fp8_e4m3", dim, heads, "sum", key_scale.dtype == torch.int8, gated=True)
        asked = queries, query_scale, gates
    else:
        layout = Layout(packed, 2 * dim, heads, "sum", gated=True)
        asked = *ready_packed(queries, _stored(query_scale, layout), gates, layout), None
    scale = _for_rows(_stored(key_scale, layout), rows)
    return Source(asked[0], _for_rows(keys, rows), scale, *asked[1:]), layout


def _stored(scale: Any, layout: Layout) -> Any:
    """Scales as the kernels read them."""
    return fp4.words(scale) if layout.blocked else scale


def _for_rows(tensor: Any, rows: int) -> Any:
    """One row serves all rows where there is but one."""
    return tensor if tensor is None else tensor.expand(rows, -1, -1, -1)


@triton.constexpr_function
def _top_field(bits, plane):
    """PTX that moves field `plane` of four bytes to their top.

    Its first bit is turned then and the rest zero, but not of signs, behind which others follow.
    """
    if bits == 1:
        return f"shl.b32 $0, $1, {7 - plane};"
    mask = {2: 0xC0C0C0C0, 4: 0xF0F0F0F0}[bits]
    shift = 8 - bits - bits * plane
    turned = f"lop3.b32 $0, t, {mask}, {0x80808080}, 0x6a;"  # (t & mask) ^ top bits
    return f"{{ .reg .b32 t; shl.b32 t, $1, {shift}; {turned} }}"


@triton.jit
def _levels(x, PLANE: tl.constexpr, BITS: tl.constexpr):
    """What a field stands for, minus a half, times 2 ** (8 - BITS), int8; of a sign, its `turned` F."""
    if BITS == 8:
        levels = x
    elif PLAIN and BITS == 1:
        byte = 8 * tl.arange(0, 4)[None, None, :]
        bytes = tl.reshape(x.to(tl.uint32), [x.shape[0], x.shape[1] // 4, 4])
        words = tl.sum(bytes << byte, 2) << (7 - PLANE)
        levels = tl.reshape((words[:, :, None] >> byte).to(tl.int8), x.shape)
    elif PLAIN:
        field = (x.to(tl.int32) << (8 - BITS - BITS * PLANE)) & (256 - (1 << (8 - BITS)))
        levels = (field ^ 128).to(tl.int8)
    else:
        levels = tl.inline_asm_elementwise(
            _top_field(BITS, PLANE), "=r,r", [x], dtype=tl.int8, is_pure=True, pack=4
        )
    return levels


@triton.jit
def _early(place, there):
    """Floats that may be read before the kernel before has ended: past the first-level cache, which may
    hold what was there before."""
    return tl.load(place, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def prepare(source, batch, group, query, LAYOUT: tl.constexpr):
    """A group's queries as `score_rows` multiplies them: a number and a sum a head, and columns."""
    queries, by, _, _, _, _, units, units_by, gates, gates_by = source
    if not LAYOUT.made_ready:
        head = tl.arange(0, LAYOUT.padded).to(tl.int64)  # of a long prompt, heads are far apart
        dim = tl.arange(0, LAYOUT.dim)
        real = head < LAYOUT.group
        queries += batch.to(tl.int64) * by[0] + query.to(tl.int64) * by[2]
        at = queries + head[None, :] * by[1] + dim[:, None]
        columns = (tl.load(at, mask=real[None, :], other=0.0, cache_modifier=".cg"),)
        at = units + batch * units_by[0] + head * units_by[1] + query * units_by[2]
        unit = _early(at, real) * (1.0 / (LAYOUT.group * LAYOUT.dim) ** 0.5)
        at = gates + batch * gates_by[0] + query * gates_by[1] + head * gates_by[2]
        unit *= _early(at, real)
        prepared = unit, unit, columns
    else:
        prepared = of_list(queries, by, units, units_by, batch, group, query, LAYOUT)
    return prepared


@triton.jit
def score_rows(source, prepared, batch, group, row, length, LAYOUT: tl.constexpr):
    """Scores of the keys of rows [R]: [R, SHARING] pooled over the group, [R, SHARING, PADDED] else."""
    codes = codes_of(source, batch, group, row, length, LAYOUT)
    return scores_of(source, codes, prepared, batch, group, row, length, LAYOUT)


@triton.jit
def codes_of(source, batch, group, row, length, LAYOUT: tl.constexpr):
    """The codes of rows [R]."""
    _, _, codes, by, _, _, _, _, _, _ = source
    codes += batch.to(tl.int64) * by[0] + group.to(tl.int64) * by[1]
    if LAYOUT.blocked:  # the last key stands for what is beyond it, and is not kept
        row = tl.minimum(row, length - 1)
    at = row[:, None] * LAYOUT.bytes + tl.arange(0, LAYOUT.bytes)[None, :]
    if LAYOUT.blocked:
        x = tl.load(codes + at)
    else:
        there = at < length * LAYOUT.width
        x = tl.load(codes + at, mask=there, other=0.0 if LAYOUT.bits == 0 else 0)
    return x


@triton.jit
def scores_of(source, x, prepared, batch, group, row, length, LAYOUT: tl.constexpr):
    """As `score_rows`, of their codes."""
    _, _, _, _, scales, scales_by, _, _, _, _ = source
    unit, total, columns = prepared
    SHARING: tl.constexpr = LAYOUT.sharing
    BITS: tl.constexpr = LAYOUT.bits
    PLANES: tl.constexpr = LAYOUT.planes
    if LAYOUT.dtype != "sign":
        scales += batch.to(tl.int64) * scales_by[0] + group.to(tl.int64) * scales_by[1]
    if LAYOUT.blocked:
        bits = scales_of(scales, tl.minimum(row, length - 1), LAYOUT)
        x, scale = fields(x, bits, LAYOUT)
        x = crossed(side_by_side(x, LAYOUT))
    elif LAYOUT.dtype != "sign":
        slot = slots_of(row, LAYOUT)
        scale = tl.load(scales + slot, mask=slot < length, other=0)
        if LAYOUT.pow2:
            scale = ((scale.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    if LAYOUT.gated and LAYOUT.blocked:
        scores = uncrossed(gated_sum(x, columns[0], unit, total, LAYOUT)[:, None])
    elif LAYOUT.gated:
        hits = tl.maximum(tl.dot(x, columns[0]), 0.0, propagate_nan=tl.PropagateNan.ALL)
        scores = tl.sum(hits * unit[None, :], 1)[:, None]
    else:
        COLUMNS: tl.constexpr = LAYOUT.columns
        leading = (tl.arange(0, COLUMNS) % 2 == 0)[None, :]
        if LAYOUT.blocked:
            products = uncrossed(tl.dot(x, columns[0]))
            products *= tl.where(leading, 1.0, TRAILING)
        elif BITS == 0:
            products = tl.dot(x.to(tl.float16), columns[0])
            products *= tl.where(leading, 1.0, TRAILING)
        else:
            products = tl.zeros([row.shape[0], COLUMNS], tl.int32)
            for plane in tl.static_range(PLANES):
                levels = _levels(x, plane, BITS)
                products = tl.dot(levels, columns[plane], products, out_dtype=tl.int32)
            products *= tl.where(leading, 256, 1)
        products = tl.reshape(products, [row.shape[0], SHARING * LAYOUT.padded, 2])
        scores = tl.reshape(tl.sum(products, 2), [row.shape[0], SHARING, LAYOUT.padded])
        scores = scores.to(tl.float32) * unit[None, None, :]
        if (BITS > 0) & (BITS < 8):
            scores += total[None, None, :]
        if LAYOUT.pool == "max":
            real = (tl.arange(0, LAYOUT.padded) < LAYOUT.group)[None, None, :]
            sums = tl.sum(scores, 2)
            scores = tl.max(tl.where(real, scores, float("-inf")), 2)
            scores = tl.where(sums == sums, scores, sums)  # NaN, which a maximum would hide
        elif LAYOUT.summed:
            scores = tl.sum(scores, 2)
    if (LAYOUT.dtype != "sign") & (LAYOUT.dtype != "nvfp4"):
        scores *= scale[:, :, None] if LAYOUT.pool == "none" else scale
    return scores


@triton.jit
def slots_of(row, LAYOUT: tl.constexpr):
    """The slots of the keys of rows [R]: [R, SHARING]."""
    return row[:, None] * LAYOUT.sharing + tl.arange(0, LAYOUT.sharing)[None, :]


@triton.jit
def seen(start, stop, batch, query, length):
    """The slots that a query sees: the first, and one past the last."""
    first, end = 0, length
    if start is not None:
        places, by = start
        first = tl.load(places + batch * by, cache_modifier=".cg")
        first = tl.minimum(first, length).to(tl.int32)
    if stop is not None:
        places, by = stop
        end = tl.load(places + batch * by[0] + query * by[1], cache_modifier=".cg")
        end = tl.minimum(end, length).to(tl.int32)
    return first, end


# Tiles change with the length; a kernel for each would be compiled amid decoding.
@triton.jit(do_not_specialize=["tiles"])
def _score(
    source, start, stop, out, by, length, groups, tiles,
    LAYOUT: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    batch, group, query = tl.program_id(1) // groups, tl.program_id(1) % groups, tl.program_id(2)
    first, end = seen(start, stop, batch, query, length)
    prepared = prepare(source, batch, group, query, LAYOUT)
    out += batch.to(tl.int64) * by[0] + query.to(tl.int64) * by[2]
    begin = tl.program_id(0) * tiles
    beyond = tl.minimum(begin + tiles, tl.cdiv(length, LAYOUT.sharing * ROWS))
    for tile in tl.range(begin, beyond, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        scores = score_rows(source, prepared, batch, group, row, length, LAYOUT)
        slot = slots_of(row, LAYOUT)
        visible = (slot >= first) & (slot < end)
        if LAYOUT.pool == "none":
            head = tl.arange(0, LAYOUT.padded)
            at = out + (group * LAYOUT.group + head).to(tl.int64)[None, None, :] * by[1]
            real = (slot < length)[:, :, None] & (head < LAYOUT.group)[None, None, :]
            scores = tl.where(visible[:, :, None], scores, float("-inf"))
            tl.store(at + slot[:, :, None], scores, mask=real)
        else:
            at = out + group.to(tl.int64) * by[1] + slot
            tl.store(at, tl.where(visible, scores, float("-inf")), mask=slot < length)


def score_codes(
    source: Source,
    layout: Layout,
    start: Tensor | None,
    stop: Tensor | None,
    config: Config | None = None,
) -> Tensor:
    """Scores [B, Hs, Tq, T] float32, -inf where a query does not see the slot.

    Shapes: as topkit.kernels.score.score_codes; start [B], stop [B or 1, Tq].
    """
    codes, count = source.codes, source.queries.shape[2]
    config = config or CONFIGS[layout.name]
    rows, groups, length = codes.shape[:3]
    heads = groups * layout.group if layout.pool == "none" else groups
    out = codes.new_empty(rows, heads, count, length, dtype=torch.float32)
    tiles = triton.cdiv(triton.cdiv(length, layout.sharing), config.rows)
    if out.numel() == 0:
        return out
    each = config.share(tiles, rows * groups * count, multiprocessors(codes.device))
    with torch.cuda.device_of(codes):  # Triton launches on the current device
        _score[(triton.cdiv(tiles, each), rows * groups, count)](
            source.packed(), *window(start, stop), out, out.stride(), length, groups,
            each, layout, config.rows, config.stages, num_warps=config.warps,
            maxnreg=config.registers, launch_pdl=has_pdl(codes.device),
        )  # fmt: skip
    return out


def window(start: Tensor | None, stop: Tensor | None) -> tuple[Any, Any]:
    """Start and stop as `seen` takes them: one row of stops serves all rows where there is but one."""
    begins = None if start is None else (start, start.stride(0))
    if stop is None:
        return begins, None
    return begins, (stop, (stop.stride(0) if stop.shape[0] > 1 else 0, stop.stride(1)))
