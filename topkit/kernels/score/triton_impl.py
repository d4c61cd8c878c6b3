"""Scores of queries against packed keys, on tensor cores.

Keys stay in the bits that they are stored in: fields of 2 or 4 bits are moved to the top of their byte,
four at a time, and multiplied as int8; signs are not even cut out (topkit.kernels.score.turned). A query
is two columns of int8 (fp16 for fp8 keys), its leading and its trailing digits, so that 15 of its bits
(22) count. The heads of a group are columns of one product, and at least 32 bytes of keys one row of it:
of short codes a row holds several keys, and the columns of one key are zero where another's bytes stand.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import interpreted
from topkit.kernels.early import EARLY, after_others
from topkit.kernels.score.turned import all_set, turned

BITS = {"sign": 1, "int2": 2, "int4": 4, "int8": 8, "fp8_e4m3": 0, "lightning": 0}
PLAIN = tl.constexpr(interpreted())  # the interpreter has no inline assembly
# What the trailing digits of fp16 stand for, beside the leading.
TRAILING = tl.constexpr(2.0**-11)


@dataclass(frozen=True)
class Config:
    """Rows of keys a tile, tiles a program, warps, tiles that are on their way at a time."""

    rows: int
    tiles: int
    warps: int
    stages: int


# Of programs with fewer tiles more is lost while they start; with more, while the last ones end.
CONFIGS = {
    "sign": Config(128, 6, 4, 3),
    "int2": Config(128, 8, 4, 3),
    "int4": Config(128, 8, 4, 4),
    "int8": Config(128, 8, 4, 4),
    "fp8_e4m3": Config(128, 8, 4, 4),
    "lightning": Config(128, 8, 4, 4),
}


@dataclass(frozen=True)
class Form:
    """What a kernel is compiled for: how keys are stored, how many heads share them, the pooling."""

    dtype: str
    dim: int
    group: int
    pool: str
    pow2: bool = False

    @property
    def bits(self) -> int:
        """Of a field; 0 for floats."""
        return BITS[self.dtype]

    @property
    def width(self) -> int:
        """Bytes of a key."""
        return self.dim * (self.bits or 8) // 8

    @property
    def planes(self) -> int:
        return self.dim // self.width

    @property
    def summed(self) -> bool:
        """Whether the pooled scores are those of the heads' summed queries, which is one head's work."""
        return self.pool in ("mean", "sum") and self.dtype != "lightning"

    @property
    def heads(self) -> int:
        """How many are scored."""
        return 1 if self.summed else self.group

    @property
    def sharing(self) -> int:
        """Keys of one row: 32 bytes at least, and up to 64 where a product has columns left for it."""
        left = 4 // (1 << (self.heads - 1).bit_length())
        return max(1, 32 // self.width, min(left, 64 // self.width))

    @property
    def apart(self) -> bool:
        """Whether each thread holds scores of its own: both digits' columns of a key lie in one."""
        return self.padded == 1 and self.dtype != "lightning"

    @property
    def padded(self) -> int:
        """Heads scored, padded: a product has a power of two of columns, and at least 8."""
        least = 1 if self.dtype == "lightning" else 4 // self.sharing
        return max(1 << (self.heads - 1).bit_length(), least)


@dataclass(frozen=True)
class Source:
    """The tensors that are scored, as the kernels take them."""

    queries: Tensor
    codes: Tensor
    scales: Tensor | None = None
    query_scales: Tensor | None = None
    gates: Tensor | None = None

    def packed(self) -> tuple[Any, ...]:
        tensors = (self.queries, self.codes, self.scales, self.query_scales, self.gates)
        return tuple(x for t in tensors for x in (t, None if t is None else t.stride()))


def of_codes(
    queries: Tensor, codes: Tensor, dtype: str, scale: Tensor | None, pool: str | None
) -> tuple[Source, Form]:
    """What `score_codes` takes, of topkit.kernels.score.score_codes's checked arguments."""
    rows, heads, _, dim = queries.shape
    pow2 = scale is not None and scale.dtype == torch.int8
    if dtype == "sign":
        queries = turned(queries)
    source = Source(queries, _for_rows(codes, rows), _for_rows(scale, rows))
    return source, Form(dtype, dim, heads // codes.shape[1], pool or "none", pow2)


def of_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    query_scale: Tensor | None,
    key_scale: Tensor | None,
) -> tuple[Source, Form]:
    """The same of topkit.kernels.score.score_lightning's, with both scales."""
    assert query_scale is not None and key_scale is not None
    rows, heads, _, dim = queries.shape
    keys, scale = _for_rows(keys, rows), _for_rows(key_scale, rows)
    source = Source(queries, keys, scale, query_scale, gates)
    return source, Form("lightning", dim, heads, "sum", key_scale.dtype == torch.int8)


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
    """What a field stands for, less a half, times 2 ** (8 - BITS), int8; of a sign, its `turned` F."""
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


@triton.jit
def _early(place, there):
    """Floats that may be read before the kernel before has ended: past the first-level cache, which may
    hold what was there before."""
    return tl.load(place, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def _asked(queries, by, head, dim, own, FORM: tl.constexpr):
    """Components of a group's queries, of the heads that are scored; zero elsewhere."""
    GROUP: tl.constexpr = FORM.group
    if FORM.summed:
        real = own & (head == 0)
        q = _early(queries + dim + 0 * head, real)
        for other in tl.static_range(1, GROUP):
            q += _early(queries + other * by[1] + dim + 0 * head, real)
        if FORM.pool == "mean":
            q *= 1.0 / GROUP
    else:
        real = own & (head < GROUP)
        q = _early(queries + head * by[1] + dim, real)
    return q


@triton.jit
def prepare(source, batch, group, query, FORM: tl.constexpr):
    """A group's queries as `score_rows` multiplies them: a number and a sum a head, and columns."""
    queries, by, _, _, _, _, query_scales, scales_by, gates, gates_by = source
    GROUP: tl.constexpr = FORM.group
    PLANES: tl.constexpr = FORM.planes
    queries += batch.to(tl.int64) * by[0] + group * GROUP * by[1] + query * by[2]
    head = tl.arange(0, FORM.padded)
    dim = tl.arange(0, FORM.dim)
    if FORM.dtype == "lightning":
        real = head < GROUP
        at = queries + head[None, :] * by[1] + dim[:, None]
        columns = (tl.load(at, mask=real[None, :], other=0.0, cache_modifier=".cg"),)
        at = query_scales + batch * scales_by[0] + head * scales_by[1] + query * scales_by[2]
        unit = _early(at, real) * (1.0 / (GROUP * FORM.dim) ** 0.5)
        at = gates + batch * gates_by[0] + query * gates_by[1] + head * gates_by[2]
        unit *= _early(at, real)
        total = unit
    else:
        BITS: tl.constexpr = FORM.bits
        whole = _asked(queries, by, head[:, None], dim[None, :], True, FORM)
        unit = _unit(tl.max(tl.abs(whole), 1), BITS)
        if FORM.dtype == "sign":
            total = tl.sum(whole * all_set(dim, FORM.width)[None, :], 1)
        else:
            total = 0.5 * tl.sum(whole, 1)
        unit = tl.where(total == total, unit, total)  # NaN, which integers would hide
        column = tl.arange(0, FORM.sharing * FORM.padded * 2)
        byte = tl.arange(0, FORM.sharing * FORM.width)
        head = ((column // 2) % FORM.padded)[None, :]
        whole = _asked(queries, by, head, dim[:, None], True, FORM)
        units = _unit(tl.max(tl.abs(whole), 0), BITS)[None, :]
        own = (byte // FORM.width)[:, None] == (column // (2 * FORM.padded))[None, :]
        columns = ()
        for plane in tl.static_range(PLANES):
            there = (plane * FORM.width + byte % FORM.width)[:, None]
            q = _asked(queries, by, head, there, own, FORM) / units
            digits = _digits(q, (column % 2 == 1)[None, :], BITS)
            columns = columns + (digits,)  # noqa: RUF005 - Triton has no other way
        # A score is unit * product + total; a sign is worth twice its bit, less one.
        if FORM.dtype == "sign":
            unit *= 2.0
        elif BITS > 0:
            unit *= 1.0 / (1 << (8 - BITS))
    return unit, total, columns


@triton.jit
def score_rows(source, prepared, batch, group, row, length, FORM: tl.constexpr):
    """Scores of the keys of rows [R]: [R, SHARING] pooled over the group, [R, SHARING, PADDED] else."""
    _, _, codes, by, scales, scales_by, _, _, _, _ = source
    unit, total, columns = prepared
    SHARING: tl.constexpr = FORM.sharing
    BITS: tl.constexpr = FORM.bits
    PLANES: tl.constexpr = FORM.planes
    codes += batch.to(tl.int64) * by[0] + group.to(tl.int64) * by[1]
    byte = tl.arange(0, SHARING * FORM.width)
    at = row[:, None] * (SHARING * FORM.width) + byte[None, :]
    x = tl.load(codes + at, mask=at < length * FORM.width, other=0.0 if BITS == 0 else 0)
    if FORM.dtype == "lightning":
        hits = tl.maximum(tl.dot(x, columns[0]), 0.0, propagate_nan=tl.PropagateNan.ALL)
        scores = tl.sum(hits * unit[None, :], 1)[:, None]
    else:
        COLUMNS: tl.constexpr = SHARING * FORM.padded * 2
        leading = (tl.arange(0, COLUMNS) % 2 == 0)[None, :]
        if BITS == 0:
            products = tl.dot(x.to(tl.float16), columns[0])
            products *= tl.where(leading, 1.0, TRAILING)
        else:
            products = tl.zeros([row.shape[0], COLUMNS], tl.int32)
            for plane in tl.static_range(PLANES):
                levels = _levels(x, plane, BITS)
                products = tl.dot(levels, columns[plane], products, out_dtype=tl.int32)
            products *= tl.where(leading, 256, 1)
        products = tl.reshape(products, [row.shape[0], SHARING * FORM.padded, 2])
        scores = tl.reshape(tl.sum(products, 2), [row.shape[0], SHARING, FORM.padded])
        scores = scores.to(tl.float32) * unit[None, None, :]
        if (BITS > 0) & (BITS < 8):
            scores += total[None, None, :]
        if FORM.pool == "max":
            real = (tl.arange(0, FORM.padded) < FORM.group)[None, None, :]
            sums = tl.sum(scores, 2)
            scores = tl.max(tl.where(real, scores, float("-inf")), 2)
            scores = tl.where(sums == sums, scores, sums)  # NaN, which a maximum would hide
        elif FORM.summed:
            scores = tl.sum(scores, 2)
    if FORM.dtype != "sign":
        slot = slots_of(row, FORM)
        at = scales + batch.to(tl.int64) * scales_by[0] + group.to(tl.int64) * scales_by[1] + slot
        scale = tl.load(at, mask=slot < length, other=0)
        if FORM.pow2:
            scale = ((scale.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        scores *= scale[:, :, None] if FORM.pool == "none" else scale
    return scores


@triton.jit
def slots_of(row, FORM: tl.constexpr):
    """The slots of the keys of rows [R]: [R, SHARING]."""
    return row[:, None] * FORM.sharing + tl.arange(0, FORM.sharing)[None, :]


@triton.jit
def seen(start, stop, batch, query, length):
    """The slots that a query sees: the first, and one past the last."""
    first, end = 0, length
    if start is not None:
        first = tl.load(start + batch, cache_modifier=".cg").to(tl.int32)
    if stop is not None:
        places, by = stop
        end = tl.load(places + batch * by[0] + query * by[1], cache_modifier=".cg")
        end = tl.minimum(end, length).to(tl.int32)
    return first, end


@triton.jit
def _score(
    source, start, stop, out, by, length, groups, tiles,
    FORM: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    after_others()
    batch, group, query = tl.program_id(1) // groups, tl.program_id(1) % groups, tl.program_id(2)
    first, end = seen(start, stop, batch, query, length)
    prepared = prepare(source, batch, group, query, FORM)
    out += batch.to(tl.int64) * by[0] + query.to(tl.int64) * by[2]
    begin = tl.program_id(0) * tiles
    beyond = tl.minimum(begin + tiles, tl.cdiv(length, FORM.sharing * ROWS))
    for tile in tl.range(begin, beyond, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        scores = score_rows(source, prepared, batch, group, row, length, FORM)
        slot = slots_of(row, FORM)
        visible = (slot >= first) & (slot < end)
        if FORM.pool == "none":
            head = tl.arange(0, FORM.padded)
            at = out + (group * FORM.group + head).to(tl.int64)[None, None, :] * by[1]
            real = (slot < length)[:, :, None] & (head < FORM.group)[None, None, :]
            scores = tl.where(visible[:, :, None], scores, float("-inf"))
            tl.store(at + slot[:, :, None], scores, mask=real)
        else:
            at = out + group.to(tl.int64) * by[1] + slot
            tl.store(at, tl.where(visible, scores, float("-inf")), mask=slot < length)


def score_codes(
    source: Source,
    form: Form,
    start: Tensor | None,
    stop: Tensor | None,
    config: Config | None = None,
) -> Tensor:
    """Scores [B, Hs, Tq, T] float32, -inf where a query does not see the slot.

    Shapes: as topkit.kernels.score.score_codes; start [B], stop [B or 1, Tq].
    """
    queries, codes = source.queries, source.codes
    config = config or CONFIGS[form.dtype]
    rows, groups, length = codes.shape[:3]
    heads = queries.shape[1] if form.pool == "none" else groups
    out = queries.new_empty(rows, heads, queries.shape[2], length, dtype=torch.float32)
    tiles = triton.cdiv(triton.cdiv(length, form.sharing), config.rows)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        _score[(triton.cdiv(tiles, config.tiles), rows * groups, queries.shape[2])](
            source.packed(), *window(start, stop), out, out.stride(), length, groups,
            config.tiles, form, config.rows, config.stages, num_warps=config.warps,
            launch_pdl=EARLY.value,
        )  # fmt: skip
    return out


def window(start: Tensor | None, stop: Tensor | None) -> tuple[Any, Any]:
    """Start and stop as `seen` takes them: one row of stops serves all rows where there is but one."""
    start = None if start is None else start.contiguous()
    if stop is None:
        return start, None
    return start, (stop, (stop.stride(0) if stop.shape[0] > 1 else 0, stop.stride(1)))
