"""The cuts of rows that their lists do not tell: all of a row's scores are written, and the wanted one sought."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.select_topk.bisect_topk import middle
from topkit.kernels.select_topk.keys import INFINITY, LOWEST, NOT_A_NUMBER, float_of, keys_of
from topkit.kernels.topk_attention.row_ends import cut_between
from topkit.kernels.topk_attention.row_places import first_seen, narrowed

# The greatest float that is a number.
GREATEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def cut_rows_again(
    queries, queries_by, keys, keys_by, kept, kept_by, start, left, state, scratch, low, high, last, best,
    limit, slack, count, ahead, heads, group, length,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Cut the rows that are left, `limit` of them at most; of NaN, say so.

    Shapes: left [n], places in [B, Hq, Tq]; state [2], how many are left, and whether a score is NaN; scratch
    [programs, T], T less than 1024 WIDE. M, a query so many times, is what a product of tensor cores takes.
    """
    scratch += tl.program_id(0).to(tl.int64) * length
    d = tl.arange(0, D)
    for nth in range(tl.program_id(0), tl.minimum(tl.load(state), limit), tl.num_programs(0)):
        row = tl.load(left + nth)
        index, query = row // count, row % count
        batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
        k = narrowed(tl.load(kept + batch * kept_by[0] + query * kept_by[1]))
        first, place = first_seen(start, batch), ahead + query
        its = queries + batch * queries_by[0] + head * queries_by[1] + query.to(tl.int64) * queries_by[2]  # fmt: skip
        q = tl.load(its + tl.zeros([M, 1], tl.int64) + d[None, :])
        begin = first // N * N
        for slots in tl.range(begin, place + 1, N, num_stages=STAGES):
            slot = slots + tl.arange(0, N)
            at = batch * keys_by[0] + (head // group) * keys_by[1] + slot.to(tl.int64)[None, :] * keys_by[2]  # fmt: skip
            key = tl.load(keys + at + d[:, None], mask=slot[None, :] <= place, other=0.0)
            # Its rows are one and the same: who holds the first writes it.
            there = (tl.arange(0, M) == 0)[:, None] & (slot <= place)[None, :]
            tl.store(scratch + slot[None, :] + tl.zeros([M, 1], tl.int32), dot(q, key, UPCAST).to(tl.int32, bitcast=True), mask=there)  # fmt: skip
        tl.debug_barrier()
        top, visible = _in_order(scratch, begin, first, place + 1, WIDE)
        tl.debug_barrier()
        if top == NOT_A_NUMBER:
            tl.store(state + 1, 1)
        else:
            tl.store(best + row, tl.where(top == LOWEST, float("-inf"), float_of(top)))
            _cut(scratch, begin, place + 1, k, top, visible, slack, low + row, high + row, last + row, WIDE)  # fmt: skip
        tl.debug_barrier()  # before the next row is written


@triton.jit
def _in_order(scores, begin, first, end, WIDE: tl.constexpr):
    """Write what stand there as floats as integers in their order: the greatest, and how many may be chosen."""
    tops, counts = tl.full([WIDE], LOWEST, tl.int32), tl.zeros([WIDE], tl.int32)
    for at in range(begin, end, WIDE):
        slot = at + tl.arange(0, WIDE)
        x = tl.load(scores + slot, mask=slot < end, other=0).to(tl.float32, bitcast=True)
        key = tl.where((slot >= first) & (slot < end), keys_of(x), LOWEST)
        tl.store(scores + slot, key, mask=slot < end)
        tops = tl.maximum(tops, key)
        counts += (key > LOWEST).to(tl.int32)
    return tl.max(tops), tl.sum(counts)


@triton.jit
def _cut(scores, begin, end, k, top, reach, slack, low, high, last, WIDE: tl.constexpr):
    """The cut of a row of scores, in the order of integers, of which `reach` may be chosen."""
    bottom = tl.full([], LOWEST + 1, tl.int32)
    if (k <= 0) | (reach <= k):  # nothing stays, or all
        nothing = (k <= 0) | (reach == 0)
        bar = tl.where(nothing, float("inf"), float("-inf"))
        tl.store(low, bar)
        tl.store(high, bar)
        tl.store(last, -1)
    else:
        # The greatest that k reach, or any that no more do.
        while (bottom < top) & (reach > k):
            half = middle(bottom, top)
            under, over = middle(bottom, half), middle(half, top)
            n0, n1, n2 = _reaching_three(scores, begin, end, under, half, over, WIDE)
            above = tl.where(n1 >= k, over, tl.where(n0 >= k, half, under)) - 1
            top = tl.where(n2 >= k, top, above)
            bottom = tl.where(n1 >= k, half, tl.where(n0 >= k, under, bottom))
            bottom = tl.where(n2 >= k, over, bottom)
            reach = tl.where(n1 >= k, n1, tl.where(n0 >= k, n0, reach))
            reach = tl.where(n2 >= k, n2, reach)
        if reach == k:
            least, next_one = _about(scores, begin, end, bottom, WIDE)
            bar = cut_between(least, next_one)
            tl.store(low, bar)
            tl.store(high, bar)
            tl.store(last, -1)
        else:
            tied = float_of(bottom)
            # No sum is off by a share of infinity; and a bar below infinity stays so.
            around = tl.where(bottom == INFINITY, 0.0, slack * tl.abs(tied))
            under = keys_of(tl.maximum(tied - around, -GREATEST))
            # The next float below; of zero, whose two signs are one place, it is two away.
            tl.store(low, float_of(under - 1 - (under == 0).to(tl.int32)))
            tl.store(high, tl.where(bottom == INFINITY, tied, tl.minimum(tied + around, GREATEST)))
            wanted = k - _reaching(scores, begin, end, bottom + 1, WIDE)
            tl.store(last, _slot_of_nth(scores, begin, end, bottom, wanted, WIDE))


@triton.jit
def _part(scores, begin, end, WIDE: tl.constexpr):
    at = begin + tl.arange(0, WIDE)
    return tl.load(scores + at, mask=at < end, other=LOWEST)


@triton.jit
def _reaching(scores, begin, end, bar, WIDE: tl.constexpr):
    """How many reach a bar, which is above the lowest."""
    total = tl.full([], 0, tl.int32)
    for at in range(begin, end, WIDE):
        total += tl.sum((_part(scores, at, end, WIDE) >= bar).to(tl.int32))
    return total


@triton.jit
def _reaching_three(scores, begin, end, one, two, three, WIDE: tl.constexpr):
    """How many reach each of three bars that ascend: what a row is read for serves all of them."""
    counts = tl.zeros([WIDE], tl.int32)  # of ten bits each, summed once
    for at in range(begin, end, WIDE):
        x = _part(scores, at, end, WIDE)
        reached = tl.where(x >= one, 1, 0)
        reached = tl.where(x >= two, 1 + (1 << 10), reached)
        counts += tl.where(x >= three, 1 + (1 << 10) + (1 << 20), reached)
    return tl.sum(counts & 1023), tl.sum((counts >> 10) & 1023), tl.sum(counts >> 20)


@triton.jit
def _about(scores, begin, end, bar, WIDE: tl.constexpr):
    """The least that reaches a bar, and the greatest that does not, LOWEST for none."""
    least, below = tl.full([], NOT_A_NUMBER, tl.int32), tl.full([], LOWEST, tl.int32)
    for at in range(begin, end, WIDE):
        x = _part(scores, at, end, WIDE)
        least = tl.minimum(least, tl.min(tl.where(x >= bar, x, NOT_A_NUMBER)))
        below = tl.maximum(below, tl.max(tl.where(x < bar, x, LOWEST)))
    return least, below


@triton.jit
def _slot_of_nth(scores, begin, end, tied, wanted, WIDE: tl.constexpr):
    """The slot of the `wanted`-th score that is `tied`."""
    found, before = tl.full([], -1, tl.int32), tl.full([], 0, tl.int32)
    for at in range(begin, end, WIDE):
        if before < wanted:
            same = (_part(scores, at, end, WIDE) == tied).to(tl.int32)
            count = tl.sum(same)
            if count > 0:
                nth = before + tl.cumsum(same, 0)
                slot = at + tl.arange(0, WIDE)
                found = tl.maximum(found, tl.max(tl.where((same > 0) & (nth <= wanted), slot, -1)))
            before += count
    return found
