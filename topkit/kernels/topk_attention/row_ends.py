"""The floor of a row from its sample's scores, and the ends of its list from those that reach the floor."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.select_topk.bisect_topk import reached_by
from topkit.kernels.select_topk.histogram_topk import store_floor
from topkit.kernels.select_topk.keys import (
    INFINITY,
    LOWEST,
    MINUS_INFINITY,
    NOT_A_NUMBER,
    float_of,
    keys_of,
)


@triton.jit
def _row(kept, kept_by, start, index, query, ahead, heads):
    """How many keys a query keeps, and the first and the last slot that it sees."""
    batch = (index // heads).to(tl.int64)
    k = tl.load(kept + batch * kept_by[0] + query * kept_by[1]).to(tl.int32)
    first = 0
    if start is not None:
        first = tl.load(start + batch).to(tl.int32)
    return k, first, ahead + query


@triton.jit(do_not_specialize=["begin", "seen"])
def floor_of_row(
    scores, scores_by, places, kept, kept_by, start, floors, floors_by,
    begin, ahead, heads, seen, margin, CAPACITY: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """The floor of a row: a key of the sample that more of it reach than are expected of the wanted ones."""
    index, query = tl.program_id(1), begin + tl.program_id(0)
    k, first, place = _row(kept, kept_by, start, index, query, ahead, heads)
    visible = place - first + 1
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    out = floors + batch * floors_by[0] + head * floors_by[1] + query
    if (k >= visible) | (k <= 0):  # all stays, or nothing: what counts is whether a score is NaN
        tl.store(out, INFINITY)
    elif visible <= CAPACITY:
        tl.store(out, MINUS_INFINITY + 1)
    else:
        at = tl.arange(0, SIZE)
        slot = tl.load(places + at, mask=at < seen, other=-1).to(tl.int32)
        there = (slot >= first) & (slot <= place)
        row = scores + batch * scores_by[0] + head * scores_by[1]
        x = tl.load(row + tl.program_id(0).to(tl.int64) * scores_by[2] + at, mask=there, other=float("-inf"))  # fmt: skip
        # Of the sample, `share` are expected among the k best, with a standard deviation of its root.
        share = k.to(tl.float32) * tl.sum(there.to(tl.int32)) / visible
        least = (share + margin * tl.sqrt(share) + 8).to(tl.int32)
        store_floor(keys_of(x), least, least + least // 8, out, THREADS)


@triton.jit(do_not_specialize=["begin"])
def ends_of_row(
    lists, kept, kept_by, start, floors, floors_by, last, first_out, told,
    begin, ahead, heads, width, CAPACITY: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The ends of a row, from its list."""
    index, query = tl.program_id(1), begin + tl.program_id(0)
    k, first, place = _row(kept, kept_by, start, index, query, ahead, heads)
    visible = place - first + 1
    row = (index // heads).to(tl.int64) * floors_by[0] + (index % heads) * floors_by[1] + query
    lists += (index.to(tl.int64) * width + tl.program_id(0)) * (CAPACITY + 1)
    n, floor = tl.load(lists), tl.load(floors + row)
    lower, known = tl.full([], LOWEST, tl.int32), n <= CAPACITY
    upper = lower
    if known:
        if n <= SIZE // 2:  # as most often: half the work
            lower, upper, known = _ends(lists, n, floor, k, visible, SIZE // 2)
        else:
            lower, upper, known = _ends(lists, n, floor, k, visible, SIZE)
    tl.store(last + row, tl.where(lower == LOWEST, float("-inf"), float_of(lower)))
    tl.store(first_out + row, tl.where(upper == LOWEST, float("-inf"), float_of(upper)))
    tl.store(told + row, known)


@triton.jit
def _ends(lists, n, floor, k, visible, SIZE: tl.constexpr):
    """The k-th best key of n and the next, LOWEST for none; and whether these are a row's own, and differ."""
    at = tl.arange(0, SIZE)
    x = tl.load(lists + 1 + at, mask=at < n, other=0).to(tl.float32, bitcast=True)
    key = tl.where(at < n, keys_of(x), LOWEST)
    highest = tl.max(key)
    found = tl.sum((key > LOWEST).to(tl.int32))
    lower = tl.full([], LOWEST, tl.int32)
    upper, known = lower, highest < NOT_A_NUMBER
    if known & (k > 0) & (visible > 0):
        lower = tl.full([], 0, tl.int32)  # all stays, whatever the last is
        if (k < visible) & ((found > k) | (floor > MINUS_INFINITY + 1)):
            known = found > k
            if known:
                low = tl.min(tl.where(key > LOWEST, key, INFINITY))
                low, reaching = reached_by(key, low, highest, k, k)
                lower = tl.min(tl.where(key >= low, key, INFINITY))
                upper = tl.max(tl.where(key < low, key, LOWEST))
                known = reaching == k
    return lower, upper, known
