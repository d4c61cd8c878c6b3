"""The floors of rows: scores that somewhat more of a sample of their keys reach than are expected of the wanted ones."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.select_topk.keys import INFINITY, MINUS_INFINITY, keys_of
from topkit.kernels.topk_attention.row_places import first_seen, narrowed

# What bounds the search, so that the middle of two is a number.
MOST = tl.constexpr(3e38)
# Times that the sample is scored for the search at most: each leaves a quarter of the scores between the bounds.
PASSES = tl.constexpr(12)


@triton.jit
def floors_of_rows(
    queries, queries_by, sampled, sampled_by, places, kept, kept_by, start, floors,
    count, ahead, heads, group, margin,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SPARSITY: tl.constexpr, CAPACITY: tl.constexpr,
    UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The floors of M queries of a head, in the order of integers; N is at most 128.

    The sample is scored anew for each four bars that its scores are held to, since products cost less than
    scores that are written and read. Shapes: sampled [B, Hk, S, D], in the slots `places`, one in each SPARSITY.
    """
    index, block = tl.program_id(1), tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    query = block * M + tl.arange(0, M)
    real = query < count
    d = tl.arange(0, D)
    queries += batch * queries_by[0] + head * queries_by[1]
    q = tl.load(queries + query.to(tl.int64)[:, None] * queries_by[2] + d[None, :], mask=real[:, None], other=0.0)  # fmt: skip
    k = narrowed(tl.load(kept + batch * kept_by[0] + query * kept_by[1], mask=real, other=0))
    first = first_seen(start, batch)
    place = ahead + query
    visible = place - first + 1
    sampled += batch * sampled_by[0] + (head // group) * sampled_by[1]
    begin = first // SPARSITY // N * N
    end = (ahead + tl.minimum(block * M + M, count) - 1) // SPARSITY + 1

    wanted = real & (k > 0) & (k < visible) & (visible > CAPACITY)
    # Nothing stays: what counts is whether a score is NaN. And of short rows all is kept.
    floor = tl.where(k <= 0, INFINITY, MINUS_INFINITY + 1)
    if tl.max(wanted.to(tl.int32)) > 0:
        total, squares = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
        bottom = tl.full([M], MOST, tl.float32)
        high = -bottom
        for at in tl.range(begin, end, N, num_stages=STAGES):
            scores, seen = _scored(q, sampled, sampled_by, places, at, first, place, end, D, N, UPCAST)  # fmt: skip
            its = tl.where(seen, scores, 0.0)
            total += tl.sum(its, 1)
            squares += tl.sum(its * its, 1)
            high = tl.maximum(high, tl.max(tl.where(seen, scores, -MOST), 1))
            bottom = tl.minimum(bottom, tl.min(tl.where(seen, scores, MOST), 1))
        # Of the sample, `share` are expected among the k best, with a standard deviation of its root.
        share = tl.maximum(k, 0).to(tl.float32) / SPARSITY
        least = (share + margin * tl.sqrt(share) + 8).to(tl.int32)
        most = least + least // 8
        high, bottom = tl.minimum(high, MOST), tl.maximum(bottom, -MOST)
        # Near the mean, from where the search goes: by standard deviations first, since of a few scores far above
        # the others, as a model's first key has them, a quarter is farther than all the others lie.
        there = tl.maximum(visible, SPARSITY).to(tl.float32) / SPARSITY
        low = total / there
        step = tl.sqrt(tl.maximum(squares / there - low * low, 0.0))
        low = tl.minimum(tl.maximum(low, bottom), high)
        step = tl.minimum(step, high * 0.25 - low * 0.25)
        searching, passed = wanted, 0
        while (tl.max(searching.to(tl.int32)) > 0) & (passed < PASSES):
            one, two, three = low + step, low + 2 * step, low + 3 * step
            n0, n1 = tl.zeros([M], tl.int32), tl.zeros([M], tl.int32)
            n2, n3 = tl.zeros([M], tl.int32), tl.zeros([M], tl.int32)
            for at in tl.range(begin, end, N, num_stages=STAGES):
                scores, seen = _scored(q, sampled, sampled_by, places, at, first, place, end, D, N, UPCAST)  # fmt: skip
                scores = tl.where(seen, scores, float("-inf"))
                # Four counts, of N at most, in one sum.
                reach = tl.where(scores >= low[:, None], 1, 0)
                reach = tl.where(scores >= one[:, None], 1 + (1 << 8), reach)
                reach = tl.where(scores >= two[:, None], 1 + (1 << 8) + (1 << 16), reach)
                reach = tl.where(scores >= three[:, None], 1 + (1 << 8) + (1 << 16) + (1 << 24), reach)  # fmt: skip
                counts = tl.sum(reach, 1)
                n0 += counts & 0xFF
                n1 += (counts >> 8) & 0xFF
                n2 += (counts >> 16) & 0xFF
                n3 += (counts >> 24) & 0xFF
            under = n0 < least  # the mean is too high, as the first bar of all
            bar = tl.where(n3 >= least, three, tl.where(n2 >= least, two, tl.where(n1 >= least, one, low)))  # fmt: skip
            reach = tl.where(n3 >= least, n3, tl.where(n2 >= least, n2, tl.where(n1 >= least, n1, n0)))  # fmt: skip
            above = tl.where(n1 < least, one, tl.where(n2 < least, two, tl.where(n3 < least, three, high)))  # fmt: skip
            high = tl.where(searching, tl.where(under, low, above), high)
            low = tl.where(searching, tl.where(under, bottom, bar), low)
            step = high * 0.25 - low * 0.25
            searching = searching & (under | (reach > most))
            passed += 1
        floor = tl.where(wanted, keys_of(low), floor)
    tl.store(floors + index.to(tl.int64) * count + query, floor, mask=real)


@triton.jit
def _scored(
    q, sampled, sampled_by, places, begin, first, place, end,
    D: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The scores of N keys of the sample, and which of them each query sees."""
    at, d = begin + tl.arange(0, N), tl.arange(0, D)
    inside = at < end
    k = tl.load(
        sampled + at.to(tl.int64)[None, :] * sampled_by[2] + d[:, None],
        mask=inside[None, :], other=0.0,
    )  # fmt: skip
    slot = tl.load(places + at, mask=inside, other=-1)
    seen = (slot >= first)[None, :] & (slot[None, :] <= place[:, None])
    return dot(q, k, UPCAST), seen
