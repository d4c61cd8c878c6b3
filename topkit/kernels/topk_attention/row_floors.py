"""The floors of rows: scores that somewhat more of a sample of their keys reach than are expected of the wanted ones."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.select_topk.keys import INFINITY, MINUS_INFINITY, keys_of
from topkit.kernels.topk_attention.row_places import BEYOND, first_seen, narrowed

# What bounds the search, so that the middle of two is a number.
MOST = tl.constexpr(3e38)
# Times that the sample is scored for the search at most: each leaves a fifth of what lies between the bounds.
PASSES = tl.constexpr(12)
# How far apart the first bars are, in standard deviations: the sample of a normal row is off by half of it.
APART = tl.constexpr(0.2)


@triton.jit
def floors_of_rows(
    queries, queries_by, sampled, sampled_by, places, kept, kept_by, start, floors,
    count, ahead, heads, group, margin, spare,
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
    lowest = ahead + block * M
    end = (ahead + tl.minimum(block * M + M, count) - 1) // SPARSITY + 1

    wanted = real & (k > 0) & (k < visible) & (visible > CAPACITY)
    # Nothing stays: what counts is whether a score is NaN. And of short rows all is kept.
    floor = tl.where(k <= 0, INFINITY, MINUS_INFINITY + 1)
    if tl.max(wanted.to(tl.int32)) > 0:
        total, squares = tl.zeros([M], tl.float32), tl.zeros([M], tl.float32)
        low = tl.full([M], MOST, tl.float32)
        high = -low
        for at in tl.range(begin, end, N, num_stages=STAGES):
            # What is not seen is as zero: bounds may lie too far out.
            scores = _scored(q, sampled, sampled_by, places, at, first, place, lowest, end, 0.0, D, N, SPARSITY, UPCAST)  # fmt: skip
            total += tl.sum(scores, 1)
            squares += tl.sum(scores * scores, 1)
            high = tl.maximum(high, tl.max(scores, 1))
            low = tl.minimum(low, tl.min(scores, 1))
        high, low = tl.minimum(high, MOST), tl.maximum(low, -MOST)
        # Of the sample, `share` are expected among the k best, with a standard deviation of its root.
        share = tl.maximum(k, 0).to(tl.float32) / SPARSITY
        least = (share + margin * tl.sqrt(share) + spare).to(tl.int32)
        most = least + least // 8
        # The first bars lie about where the wanted share of a normal row begins.
        there = tl.maximum(visible, SPARSITY).to(tl.float32) / SPARSITY
        mean = total / there
        deviation = tl.sqrt(tl.maximum(squares / there - mean * mean, 0.0))
        guess = mean + deviation * _normal((least + most).to(tl.float32) * 0.5 / there)
        step = tl.minimum(deviation * APART, high * 0.2 - low * 0.2)
        base = tl.minimum(tl.maximum(guess, low), high) - 2.5 * step
        searching, passed, reach = wanted, 0, tl.full([M], BEYOND, tl.int32)
        while (tl.max(searching.to(tl.int32)) > 0) & (passed < PASSES):
            one, two, three, four = base + step, base + 2 * step, base + 3 * step, base + 4 * step
            n1, n2 = tl.zeros([M], tl.int32), tl.zeros([M], tl.int32)
            n3, n4 = tl.zeros([M], tl.int32), tl.zeros([M], tl.int32)
            for at in tl.range(begin, end, N, num_stages=STAGES):
                scores = _scored(q, sampled, sampled_by, places, at, first, place, lowest, end, float("-inf"), D, N, SPARSITY, UPCAST)  # fmt: skip
                # Four counts, of N at most, in one sum.
                reaches = tl.where(scores >= one[:, None], 1, 0)
                reaches = tl.where(scores >= two[:, None], 1 + (1 << 8), reaches)
                reaches = tl.where(scores >= three[:, None], 1 + (1 << 8) + (1 << 16), reaches)
                reaches = tl.where(scores >= four[:, None], 1 + (1 << 8) + (1 << 16) + (1 << 24), reaches)  # fmt: skip
                counts = tl.sum(reaches, 1)
                n1 += counts & 0xFF
                n2 += (counts >> 8) & 0xFF
                n3 += (counts >> 16) & 0xFF
                n4 += (counts >> 24) & 0xFF
            above = tl.where(n1 < least, one, tl.where(n2 < least, two, tl.where(n3 < least, three, tl.where(n4 < least, four, high))))  # fmt: skip
            bar = tl.where(n4 >= least, four, tl.where(n3 >= least, three, tl.where(n2 >= least, two, one)))  # fmt: skip
            its = tl.where(n4 >= least, n4, tl.where(n3 >= least, n3, tl.where(n2 >= least, n2, n1)))  # fmt: skip
            found = searching & (n1 >= least)
            high = tl.where(searching, tl.minimum(above, high), high)
            low, reach = tl.where(found, bar, low), tl.where(found, its, reach)
            base, step = low, high * 0.2 - low * 0.2
            searching = searching & (reach > most)
            passed += 1
        floor = tl.where(wanted, keys_of(low), floor)
    tl.store(floors + index.to(tl.int64) * count + query, floor, mask=real)


@triton.jit
def _normal(share):
    """How many standard deviations above its mean a normal distribution has a share beyond, up to a half.

    To 0.003, by a quotient of two polynomials: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.22.
    """
    t = tl.sqrt(-2.0 * tl.log(tl.minimum(tl.maximum(share, 1e-9), 0.5)))
    return t - (2.30753 + 0.27061 * t) / (1.0 + (0.99229 + 0.04481 * t) * t)


@triton.jit
def _scored(
    q, sampled, sampled_by, places, begin, first, place, lowest, end, unseen,
    D: tl.constexpr, N: tl.constexpr, SPARSITY: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The scores of N keys of the sample, `unseen` where a query does not see the key."""
    at, d = begin + tl.arange(0, N), tl.arange(0, D)
    inside = at < end
    k = tl.load(
        sampled + at.to(tl.int64)[None, :] * sampled_by[2] + d[:, None],
        mask=inside[None, :], other=0.0,
    )  # fmt: skip
    scores = dot(q, k, UPCAST)
    if (begin * SPARSITY < first) | ((begin + N) * SPARSITY - 1 > lowest):
        slot = tl.load(places + at, mask=inside, other=-1)
        seen = (slot >= first)[None, :] & (slot[None, :] <= place[:, None])
        scores = tl.where(seen, scores, unseen)
    return scores
