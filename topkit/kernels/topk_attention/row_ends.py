"""The cut of a row, from its list of those scores that reach its floor."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.select_topk.bisect_topk import reached_by
from topkit.kernels.select_topk.keys import (
    INFINITY,
    LOWEST,
    MINUS_INFINITY,
    NOT_A_NUMBER,
    float_of,
    keys_of,
)
from topkit.kernels.topk_attention.row_places import first_seen, narrowed


@triton.jit
def wanted_of_row(kept, kept_by, start, index, query, ahead, heads):
    """How many keys a query keeps, and the first and the last slot that it sees."""
    batch = (index // heads).to(tl.int64)
    k = narrowed(tl.load(kept + batch * kept_by[0] + query * kept_by[1]))
    return k, first_seen(start, batch), ahead + query


@triton.jit(do_not_specialize=["begin"])
def cut_of_row(
    lists, kept, kept_by, start, floors, low, high, last, top, left, state,
    begin, count, ahead, heads, width, CAPACITY: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The cut of a row, from its list; a row that its list does not tell, or that ties there, is left."""
    index, query = tl.program_id(1), begin + tl.program_id(0)
    k, first, place = wanted_of_row(kept, kept_by, start, index, query, ahead, heads)
    visible = place - first + 1
    row = index * count + query
    lists += (index.to(tl.int64) * width + tl.program_id(0)) * (CAPACITY + 1)
    n, floor = tl.load(lists), tl.load(floors + row)
    lower, known = tl.full([], LOWEST, tl.int32), n <= CAPACITY
    upper, highest = lower, lower
    if known:
        if n <= SIZE // 2:  # as most often: half the work
            lower, upper, highest, known = _ends(lists, n, floor, k, visible, SIZE // 2)
        else:
            lower, upper, highest, known = _ends(lists, n, floor, k, visible, SIZE)
    if known:
        bar = cut_between(lower, upper)
        tl.store(low + row, bar)
        tl.store(high + row, bar)
        tl.store(last + row, -1)
        tl.store(top + row, tl.where(highest == LOWEST, float("-inf"), float_of(highest)))
    else:
        at = tl.atomic_add(state, 1, sem="relaxed")
        tl.store(left + at, row)


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
def _ends(lists, n, floor, k, visible, SIZE: tl.constexpr):
    """The k-th best key of n, the next, and the best, LOWEST for none; and whether the first two differ, and are a row's own."""
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
    return lower, upper, highest, known
