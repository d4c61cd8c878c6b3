"""The first and the newest slots, scored above all others, in Triton: one launch."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.triton_impl import seen
from topkit.kernels.score.triton_impl import window as seen_by

# Entries of a list that a program copies.
BLOCK = 1024


def force_ends(
    scores: Tensor,
    sink: int,
    window: int,
    *,
    slots: Tensor | None,
    start: Tensor | None,
    stop: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """As topkit.kernels.force_ends.force_ends's, of checked arguments."""
    rows, heads, count, width = scores.shape
    early = {"launch_pdl": has_pdl(scores.device)}
    ends = (*seen_by(start, stop), sink, window)
    if scores.numel() == 0:
        return scores, slots
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        if slots is None:
            block = triton.next_power_of_2(sink + window)
            _in_place[(rows * heads * count,)](
                scores, *ends, width, heads, count, block, num_warps=1, **early
            )
            return scores, None
        shape = (rows, heads, count, width + sink + window)
        out, names = scores.new_empty(shape), slots.new_empty(shape)
        _behind[(rows * heads * count, triton.cdiv(shape[3], BLOCK))](
            scores, slots, out, names, *ends, width, heads, count, heads // slots.shape[1], BLOCK,
            num_warps=4, **early,
        )  # fmt: skip
    return out, names


def ends_first(
    slots: Tensor, k: int, sink: int, window: int, *, start: Tensor | None, stop: Tensor
) -> Tensor:
    """As topkit.kernels.force_ends.ends_first's, of checked arguments."""
    rows, heads, count, width = slots.shape
    out = slots.new_empty(rows, heads, count, k)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(slots):  # Triton launches on the current device
        _first[(rows * heads * count,)](
            slots.contiguous(), out, *seen_by(start, stop), sink, window, width, k, heads, count,
            triton.next_power_of_2(max(width, 1)), triton.next_power_of_2(k),
            num_warps=4, launch_pdl=has_pdl(slots.device),
        )  # fmt: skip
    return out


@triton.jit
def _first(
    slots, out, start, stop, sink, window, width, k, heads, count, N: tl.constexpr, K: tl.constexpr
):
    wait_then_launch()
    row = tl.program_id(0)
    first, end = seen(start, stop, row // count // heads, row % count, 2147483647)
    visible = tl.maximum(end - first, 0)
    sinks = tl.minimum(sink, visible)
    ends = sinks + tl.minimum(window, visible - sinks)
    i, j = tl.arange(0, K), tl.arange(0, N)
    slot = tl.load(slots + row.to(tl.int64) * width + j, mask=j < width, other=-1)
    stays = (slot >= 0) & (slot >= first + sink) & (slot < end - window)
    rank = tl.cumsum(stays.to(tl.int32), 0)
    out += row.to(tl.int64) * k
    tl.store(out + ends + rank - 1, slot, mask=stays & (ends + rank <= k))
    forced = tl.where(i < sinks, first + i, end - 1 - (i - sinks))
    forced = tl.where(i < ends, forced, -1).to(tl.int64)
    others = tl.sum(stays.to(tl.int32))
    tl.store(out + i, forced, mask=(i < k) & ((i < ends) | (i >= ends + others)))


@triton.jit
def _forced(i, first, end, sink, window):
    """Forced slot number i, and whether there is one."""
    slot = tl.where(i < sink, first + i, end - 1 - (i - sink))
    least = tl.where(i < sink, first, first + sink)
    return slot, (i >= 0) & (i < sink + window) & (slot >= least) & (slot < end)


@triton.jit(do_not_specialize=["width"])
def _in_place(scores, start, stop, sink, window, width, heads, count, BLOCK: tl.constexpr):
    wait_then_launch()
    row = tl.program_id(0)
    first, end = seen(start, stop, row // count // heads, row % count, width)
    slot, there = _forced(tl.arange(0, BLOCK), first, end, sink, window)
    raised = tl.full([BLOCK], float("inf"), tl.float32)
    tl.store(scores + row.to(tl.int64) * width + slot, raised, mask=there)


@triton.jit(do_not_specialize=["width"])
def _behind(
    scores, slots, out, names, start, stop, sink, window, width, heads, count, sharing,
    BLOCK: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    row = tl.program_id(0)
    query, head, batch = row % count, row // count % heads, row // count // heads
    first, end = seen(start, stop, batch, query, 2147483647)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    listed = ((batch * (heads // sharing) + head // sharing) * count + query).to(tl.int64)
    slot = tl.load(slots + listed * width + i, mask=i < width, other=-1)
    score = tl.load(scores + row.to(tl.int64) * width + i, mask=i < width, other=float("-inf"))
    gone = (slot < first + sink) | (slot >= end - window)
    forced, there = _forced(i - width, first, end, sink, window)
    score = tl.where(there, float("inf"), tl.where(gone, float("-inf"), score))
    slot = tl.where(there, forced.to(tl.int64), tl.where(gone, -1, slot))
    at = row.to(tl.int64) * (width + sink + window) + i
    tl.store(out + at, score, mask=i < width + sink + window)
    tl.store(names + at, slot, mask=i < width + sink + window)
