"""The cut of a row, from its list of those scores that reach its floor."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.select_topk.bisect_topk import middle
from topkit.kernels.select_topk.keys import (
    INFINITY,
    LOWEST,
    MINUS_INFINITY,
    NOT_A_NUMBER,
    float_of,
    keys_of,
)
from topkit.kernels.topk_attention.row_places import first_seen, narrowed

# The bits of -inf, which is none of the keys.
NOTHING = tl.constexpr(-(1 << 23))


@triton.jit
def cut_lists(
    lists, kept, kept_by, start, floors, low, high, last, top, left, state,
    index, begin, count, ahead, heads,
    M: tl.constexpr, CAPACITY: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The cuts of M queries of a head from `begin` on, from their lists, ROWS at a time, each by LANES threads.

    A row that its list does not tell, or that ties there, is left. Shapes: lists [M, 1 + CAPACITY]; SIZE is a
    power of two from CAPACITY on.
    """
    batch = (index // heads).to(tl.int64)
    first = first_seen(start, batch)
    for some in range(0, M, ROWS):
        local = some + tl.arange(0, ROWS)
        query = begin + local
        real = query < count
        row = index * count + query
        k = narrowed(tl.load(kept + batch * kept_by[0] + query * kept_by[1], mask=real, other=0))
        visible = ahead + query - first + 1
        its = lists + local * (CAPACITY + 1)
        n = tl.load(its, mask=real, other=0)
        floor = tl.load(floors + row, mask=real, other=INFINITY)
        fits = n <= CAPACITY
        n = tl.where(fits, n, 0)
        if tl.max(n) <= SIZE // 2:  # as most often: half the work
            lower, upper, highest, known = _ends(its, n, floor, k, visible, SIZE // 2, LANES)
        else:
            lower, upper, highest, known = _ends(its, n, floor, k, visible, SIZE, LANES)
        told = real & fits & known
        bar = cut_between(lower, upper)
        tl.store(low + row, bar, mask=told)
        tl.store(high + row, bar, mask=told)
        tl.store(last + row, -1, mask=told)
        tl.store(
            top + row, tl.where(highest == LOWEST, float("-inf"), float_of(highest)), mask=told
        )
        lost = real & ~told
        at = tl.atomic_add(state + tl.zeros([ROWS], tl.int32), 1, mask=lost, sem="relaxed")
        tl.store(left + at, row, mask=lost)


@triton.jit
def cut_between(lower, upper):
    """The middle of the last score that stays and the first that is left out, LOWEST for none, which differ."""
    stays, out = float_of(lower), float_of(upper)
    bar = out + (stays - out) / 2
    bar = tl.where(bar < stays, bar, out)
    # All that is seen stays; of nothing, nothing.
    bar = tl.where(upper == LOWEST, float("-inf"), bar)
    return tl.where(lower == LOWEST, float("inf"), bar)


@triton.jit
def _ends(lists, n, floor, k, visible, SIZE: tl.constexpr, LANES: tl.constexpr):
    """The k-th best key of n, the next, and the best, LOWEST for none; and whether the first two differ, and are a row's own."""
    # A row's keys stand apart by LANES, so that a warp, or a few, have them all: little is summed across warps.
    stretch = tl.arange(0, SIZE // LANES)[:, None, None]
    at = stretch * LANES + tl.arange(0, LANES)[None, None, :]
    bits = tl.load(lists[None, :, None] + 1 + at, mask=at < n[None, :, None], other=NOTHING)
    key = keys_of(bits.to(tl.float32, bitcast=True))
    highest = tl.max(tl.max(key, 0), 1)
    found = _sum(key > LOWEST)
    known = highest < NOT_A_NUMBER
    some = known & (k > 0) & (visible > 0)
    sought = some & (k < visible) & ((found > k) | (floor > MINUS_INFINITY + 1))
    known = known & (~sought | (found > k))
    sought = sought & (found > k)
    # The greatest key that k reach, or any that no more do.
    low, high = tl.min(tl.min(tl.where(key > LOWEST, key, INFINITY), 0), 1), highest
    reaching = found
    going = sought & (low < high)
    while tl.max(going.to(tl.int32)) > 0:
        for _ in tl.static_range(4):  # what asks whether all are done waits for all warps
            pivot = middle(low, high)
            count = _sum(key >= pivot[None, :, None])
            up, down = going & (count >= k), going & (count < k)
            low, reaching = tl.where(up, pivot, low), tl.where(up, count, reaching)
            high = tl.where(down, pivot - 1, high)
            going = sought & (low < high) & (reaching > k)
    stays = tl.min(tl.min(tl.where(key >= low[None, :, None], key, INFINITY), 0), 1)
    out = tl.max(tl.max(tl.where(key < low[None, :, None], key, LOWEST), 0), 1)
    known = known & (~sought | (reaching == k))
    # Of some, all stays, whatever the last is.
    return (
        tl.where(sought, stays, tl.where(some, 0, LOWEST)),
        tl.where(sought, out, LOWEST),
        highest,
        known,
    )


@triton.jit
def _sum(which):
    """How many of each row's."""
    return tl.sum(tl.sum(which.to(tl.int32), 0), 1)
