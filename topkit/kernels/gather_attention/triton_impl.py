"""Attention over chosen keys in Triton: each list of slots is split over programs, then merged.

A list is what one query position chose, for one head or for a group of heads with one KV head. Its
heads are the rows of small matrix products. A program gathers the keys and values of its part of the
list and leaves an output and the logarithm of its softmax's sum, from which parts merge in any order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl, interpreted, multiprocessors
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.triton_impl import seen, window

MOST_SPLITS = 64
MERGED = tl.constexpr(8192)  # floats that a merging program holds at a time
LOG2E = tl.constexpr(math.log2(math.e))
NONE = tl.constexpr(float("-inf"))


class Config(NamedTuple):
    """How a launch is cut up."""

    block: int  # slots gathered at a time
    warps: int
    stages: int  # blocks on their way, and the one at work
    programs: int  # wanted on each multiprocessor


# Of lists that leave most multiprocessors without one, some, and none.
FEW = Config(block=64, warps=4, stages=3, programs=3)
SOME = Config(block=32, warps=2, stages=3, programs=4)
MANY = Config(block=64, warps=4, stages=3, programs=1)


def gather_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    scaling: float,
    log_weights: Tensor | None = None,
) -> Tensor:
    """As the reference's, of checked arguments; a slot that the cache does not have gives NaN."""
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        return _launch(queries, keys, values, indices, scaling, log_weights)


def attend_all(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scaling: float,
    start: Tensor | None,
    stop: Tensor | None,
) -> Tensor:
    """As topkit.kernels.gather_attention.attend_all's, of checked arguments."""
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        seen_by = window(start, stop)
        return _launch(queries, keys, values, None, scaling, None, seen_by=seen_by)


def _launch(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    indices: Tensor | None,
    scaling: float,
    log_weights: Tensor | None,
    config: Config | None = None,
    seen_by: tuple[Any, Any] = (None, None),
) -> Tensor:
    """The same, in a chosen config; without indices each list is of the slots that its query sees."""
    batch, heads, count, _ = queries.shape
    groups, kept = keys.shape[1], (keys.shape[2] if indices is None else indices.shape[3])
    per_row = groups if indices is None else max(indices.shape[1], groups)
    lists, group, width = batch * per_row * count, heads // per_row, values.shape[3]
    out = queries.new_empty(batch, heads, count, width)
    if lists == 0:
        return out
    there = multiprocessors(queries.device)
    config = config or (MANY if lists >= there else SOME if 4 * lists >= there else FEW)
    splits = _splits(lists, kept, there, config)
    parts = sums = None
    if splits > 1:
        parts = out.new_empty(lists, splits, group, width, dtype=torch.float32)
        sums = out.new_empty(lists, splits, group, dtype=torch.float32)
    rows = max(16, triton.next_power_of_2(group))  # the least that tensor cores take
    shape = {"GROUP": group, "DV": width}
    tile = {
        "D": queries.shape[3],
        "BLOCK": config.block,
        "ROWS": rows,
        "UPCAST": interpreted() and queries.dtype == torch.bfloat16,
    }
    early = {"launch_pdl": has_pdl(queries.device)}
    options = {"num_warps": max(config.warps, rows // 16), "num_stages": config.stages, **early}
    strides = (
        queries.stride()[:3],
        _strides(keys, batch),
        _strides(values, batch),
        None if indices is None else _strides(indices, batch, per_row),
        None if log_weights is None else _strides(log_weights, batch, per_row),
    )
    _attend[(lists, splits)](
        *(queries, keys, values, indices, log_weights, out, parts, sums),
        *strides,
        *seen_by,
        *(scaling * LOG2E.value, per_row, groups, count, kept, keys.shape[2]),
        **shape,
        **tile,
        **options,
    )
    if splits > 1:
        tile = {"SPLITS": triton.next_power_of_2(splits)}
        options = {"num_warps": 4, **early}
        _merge[(lists, group)](
            *(out, parts, sums, per_row, count, splits), **shape, **tile, **options
        )
    return out


def _splits(lists: int, kept: int, multiprocessors: int, config: Config) -> int:
    """Into how many parts a list is cut: enough to fill the GPU once, a block at least."""
    blocks = -(-kept // config.block)
    return min(blocks, MOST_SPLITS, max(1, config.programs * multiprocessors // lists))


def _strides(tensor: Tensor, batch: int, heads: int = -1) -> tuple[int, ...]:
    """Strides by which a single row, or head, is read as everyone's."""
    return tensor.expand(batch, heads, -1, -1).stride()


@triton.jit(do_not_specialize=["kept", "length"])
def _attend(
    queries,
    keys,
    values,
    indices,
    log_weights,
    out,
    parts,
    sums,
    query_strides,
    key_strides,
    value_strides,
    index_strides,
    weight_strides,
    start,
    stop,
    scale,
    per_row,
    groups,
    count,
    kept,
    length,
    GROUP: tl.constexpr,
    DV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The output of one part of one list, and the whole list's where it is the only one."""
    wait_then_launch()
    at, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    b, h, t = _place(at, per_row, count)  # type: ignore[misc]
    begin = 0
    if indices is None:
        begin, end = seen(start, stop, b, t, length)
        kept, by = tl.maximum(end - begin, 0), None
    else:
        indices += b * index_strides[0] + h * index_strides[1] + t * index_strides[2]
        by = index_strides[3]
    blocks = tl.cdiv(kept, BLOCK)
    first = split * blocks // splits * BLOCK
    last = tl.minimum(kept, (split + 1) * blocks // splits * BLOCK)
    following = _slots(indices, by, begin, first + tl.arange(0, BLOCK), last)

    head = h * GROUP + tl.arange(0, ROWS)
    real = tl.arange(0, ROWS) < GROUP
    d, dv = tl.arange(0, D), tl.arange(0, DV)
    queries += b * query_strides[0] + t * query_strides[2]
    q = tl.load(queries + head[:, None] * query_strides[1] + d, real[:, None], 0.0)
    group = h * groups // per_row
    keys += b * key_strides[0] + group * key_strides[1]
    values += b * value_strides[0] + group * value_strides[1]
    if log_weights is not None:
        log_weights += b * weight_strides[0] + h * weight_strides[1] + t * weight_strides[2]

    # A softmax to base 2, with each head's maximum and sum so far.
    top = tl.full([ROWS], NONE, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DV], tl.float32)
    for place in tl.range(first, last, BLOCK):
        # Slots are read a block ahead, so that keys on their way never wait for them.
        slot = following
        following = _slots(indices, by, begin, place + BLOCK + tl.arange(0, BLOCK), last)
        chosen = (slot >= 0) & (slot < length)
        row = slot.to(tl.int64)[:, None]
        k = tl.load(keys + row * key_strides[2] + d, chosen[:, None], 0.0)
        v = tl.load(values + row * value_strides[2] + dv, chosen[:, None], 0.0)
        scores = dot(q, k.T, UPCAST) * scale
        if log_weights is not None:
            j = place + tl.arange(0, BLOCK)
            weight = tl.load(log_weights + j * weight_strides[3], j < last, 0.0)
            scores += weight.to(tl.float32)[None, :] * LOG2E
        # No launch can raise for a slot beyond the cache without waiting for the GPU: it shows.
        scores = tl.where((slot < length)[None, :], scores, float("nan"))
        scores = tl.where((slot >= 0)[None, :], scores, NONE)
        highest = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(highest == NONE, 0.0, highest)
        p, faded = tl.exp2(scores - base[:, None]), tl.exp2(top - base)
        total = total * faded + tl.sum(p, 1)
        acc = acc * faded[:, None] + dot(p.to(v.dtype), v, UPCAST)
        top = highest

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if parts is None:
        row = (b * per_row * GROUP + head) * count + t
        tl.store(out + row[:, None] * DV + dv, acc.to(out.dtype.element_ty), real[:, None])
    else:
        row = (at.to(tl.int64) * splits + split) * GROUP + tl.arange(0, ROWS)
        tl.store(parts + row[:, None] * DV + dv, acc, real[:, None])
        tl.store(sums + row, top + tl.log2(total), real)


@triton.jit
def _slots(indices, by, begin, j, last):
    """The slots of places in a list, -1 behind its part; without a list they follow `begin`."""
    if indices is None:
        slots = tl.where(j < last, begin + j, -1)
    else:
        slots = tl.load(indices + j * by, j < last, -1)
    return slots


@triton.jit(do_not_specialize=["splits"])
def _merge(
    out,
    parts,
    sums,
    per_row,
    count,
    splits,
    GROUP: tl.constexpr,
    DV: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One head of a list from its parts, weighted by their softmax's sums."""
    wait_then_launch()
    at, g = tl.program_id(0), tl.program_id(1)
    STEP: tl.constexpr = min(SPLITS, MERGED // DV)
    b, h, t = _place(at, per_row, count)  # type: ignore[misc]
    dv = tl.arange(0, DV)
    # A softmax to base 2, as in `_attend`.
    top = tl.full([1], NONE, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, DV], tl.float32)
    for start in tl.range(0, SPLITS, STEP):
        s = start + tl.arange(0, STEP)[:, None]
        rows = (at.to(tl.int64) * splits + s) * GROUP + g
        there = s < splits
        # Past the first-level cache: launched early, this kernel may find there what was before.
        logs = tl.load(sums + rows, there, NONE, cache_modifier=".cg")
        part = tl.load(parts + rows * DV + dv, there, 0.0, cache_modifier=".cg")
        highest = tl.maximum(top, tl.max(logs, 0))
        base = tl.where(highest == NONE, 0.0, highest)
        weight, faded = tl.exp2(logs - base), tl.exp2(top - base)
        total = total * faded + tl.sum(weight, 0)
        acc = acc * faded[:, None] + tl.sum(weight * part, 0)[None, :]
        top = highest
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    row = (b * per_row * GROUP + h * GROUP + g) * count + t
    tl.store(out + row * DV + dv[None, :], acc.to(out.dtype.element_ty))


@triton.jit
def _place(at, per_row, count):
    """The batch row, the list's head and the query position of a list, in 64 bits for addresses."""
    heads = at // count
    return (
        (heads // per_row).to(tl.int64),
        (heads % per_row).to(tl.int64),
        (at % count).to(tl.int64),
    )


@triton.jit
def dot(a, b, UPCAST: tl.constexpr):
    # Triton's interpreter multiplies the bits of bfloat16.
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b)
