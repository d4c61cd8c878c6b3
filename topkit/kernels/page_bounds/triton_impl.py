"""Pages of keys by their element-wise extremes, in Triton: a launch to append, and one to score."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl, interpreted
from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.triton_impl import seen, window

# Pages of a program that scores, and its warps.
BLOCK, WARPS = 64, 4


def append_bounds(
    keys: Tensor, low: Tensor, high: Tensor, at: Tensor, page_size: int, start: Tensor | None
) -> None:
    """As topkit.kernels.page_bounds.append_bounds's, of checked arguments."""
    rows, groups, room, dim = keys.shape
    if rows * groups == 0:
        return
    with torch.cuda.device_of(keys):  # Triton launches on the current device
        _append[(rows * groups,)](
            keys, keys.stride(), low, low.stride(), high, high.stride(),
            at, window(start, None)[0], groups, room, low.shape[2], page_size,
            triton.next_power_of_2(page_size), dim, num_warps=4, launch_pdl=has_pdl(keys.device),
        )  # fmt: skip


def score_bounds(
    queries: Tensor, low: Tensor, high: Tensor, page_size: int, start: Tensor | None, stop: Tensor
) -> Tensor:
    """As topkit.kernels.page_bounds.score_bounds's, of checked arguments."""
    rows, heads, count, dim = queries.shape
    groups, pages = low.shape[1:3]
    out = queries.new_empty(rows, heads, count, pages, dtype=torch.float32)
    group = heads // groups
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        _score[(triton.cdiv(pages, BLOCK), rows * groups, count)](
            queries, queries.stride(), low, low.stride(), high, high.stride(), *window(start, stop),
            out, out.stride(), pages, page_size, groups, group, dim, BLOCK,
            max(16, triton.next_power_of_2(group)), interpreted() and queries.dtype == torch.bfloat16,
            num_warps=WARPS, launch_pdl=has_pdl(queries.device),
        )  # fmt: skip
    return out


@triton.jit
def _append(
    keys, keys_by, low, low_by, high, high_by, at, start, groups, room, pages, page_size,
    SIZE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    row, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    slot = tl.load(at).to(tl.int32)
    first, _ = seen(start, None, row, 0, room)
    row, group = row.to(tl.int64), group.to(tl.int64)
    page = (slot - first) // page_size
    i, d = tl.arange(0, SIZE), tl.arange(0, D)
    own = first + page * page_size + i
    there = (i < page_size) & (own <= slot) & (own < room)
    keys += row * keys_by[0] + group * keys_by[1]
    place = own.to(tl.int64)[:, None] * keys_by[2] + d[None, :]
    least = tl.load(keys + place, mask=there[:, None], other=float("inf"))
    most = tl.load(keys + place, mask=there[:, None], other=float("-inf"))
    inside = (slot >= first) & (page < pages) & (d < D)
    at_low = low + row * low_by[0] + group * low_by[1] + page.to(tl.int64) * low_by[2] + d
    at_high = high + row * high_by[0] + group * high_by[1] + page.to(tl.int64) * high_by[2] + d
    tl.store(at_low, tl.min(least.to(tl.float32), 0).to(low.dtype.element_ty), mask=inside)
    tl.store(at_high, tl.max(most.to(tl.float32), 0).to(high.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pages"])
def _score(
    queries, queries_by, low, low_by, high, high_by, start, stop, out, out_by, pages, page_size, groups,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    batch, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    query = tl.program_id(2)
    first, end = seen(start, stop, batch, query, 2147483647)
    batch, query, group = batch.to(tl.int64), query.to(tl.int64), group.to(tl.int64)
    head, d = (group * GROUP + tl.arange(0, ROWS))[:, None], tl.arange(0, D)
    real = (tl.arange(0, ROWS) < GROUP)[:, None]
    page = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    visible = (page < pages) & (first + page * page_size < end)
    queries += batch * queries_by[0] + query * queries_by[2]
    q = tl.load(queries + head * queries_by[1] + d[None, :], mask=real, other=0.0)
    at = page.to(tl.int64)[:, None]
    low += batch * low_by[0] + group * low_by[1]
    high += batch * high_by[0] + group * high_by[1]
    least = tl.load(low + at * low_by[2] + d[None, :], mask=visible[:, None], other=0.0)
    most = tl.load(high + at * high_by[2] + d[None, :], mask=visible[:, None], other=0.0)
    zero = tl.zeros_like(q)
    positive, negative = tl.where(q < 0, zero, q), tl.where(q > 0, zero, q)  # NaN in both
    scores = dot(positive, most.T, UPCAST) + dot(negative, least.T, UPCAST)
    scores = tl.where(visible[None, :], scores, float("-inf"))
    out += batch * out_by[0] + query * out_by[2]
    tl.store(out + head * out_by[1] + page[None, :], scores, mask=real & (page < pages)[None, :])
