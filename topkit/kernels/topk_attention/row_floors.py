"""The floors of rows: scores that somewhat more of a sample of their keys reach than are expected of the wanted ones."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.select_topk.keys import INFINITY, MINUS_INFINITY, keys_of

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
    """The floors of M queries of a head, in the order of integers.

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
    k = tl.load(kept + batch * kept_by[0] + query * kept_by[1], mask=real, other=0).to(tl.int32)
    first = 0
    if start is not None:
        first = tl.load(start + batch).to(tl.int32)
    place = ahead + query
    visible = place - first + 1
    sampled += batch * sampled_by[0] + (head // group) * sampled_by[1]
    begin = first // SPARSITY // N * N
    end = (ahead + tl.minimum(block * M + M, count) - 1) // SPARSITY + 1

    wanted = real & (k > 0) & (k < visible) & (visible > CAPACITY)
    # Nothing stays: what counts is whether a score is NaN. And of short rows all is kept.
    floor = tl.where(k <= 0, INFINITY, MINUS_INFINITY + 1)
    if tl.max(wanted.to(tl.int32)) > 0:
        there, total = tl.zeros([M], tl.int32), tl.zeros([M], tl.float32)
        bottom = tl.full([M], MOST, tl.float32)
        high = -bottom
        for at in tl.range(begin, end, N, num_stages=STAGES):
            scores, seen = _scored(q, sampled, sampled_by, places, at, first, place, end, D, N, UPCAST)  # fmt: skip
            there += tl.sum(seen.to(tl.int32), 1)
            total += tl.sum(tl.where(seen, scores, 0.0), 1)
            high = tl.maximum(high, tl.max(tl.where(seen, scores, -MOST), 1))
            bottom = tl.minimum(bottom, tl.min(tl.where(seen, scores, MOST), 1))
        # Of the sample, `share` are expected among the k best, with a standard deviation of its root.
        share = k.to(tl.float32) * there.to(tl.float32) / tl.maximum(visible, 1).to(tl.float32)
        least = (share + margin * tl.sqrt(tl.maximum(share, 0.0)) + 8).to(tl.int32)
        most = least + least // 8
        high, bottom = tl.minimum(high, MOST), tl.maximum(bottom, -MOST)
        low = total / tl.maximum(there, 1).to(tl.float32)
        low = tl.minimum(tl.maximum(low, bottom), high)
        searching, passed = wanted, 0
        while (tl.max(searching.to(tl.int32)) > 0) & (passed < PASSES):
            one, two, three = _between(low, high, 0.25), _between(low, high, 0.5), _between(low, high, 0.75)  # fmt: skip
            n0, n1 = tl.zeros([M], tl.int32), tl.zeros([M], tl.int32)
            n2, n3 = tl.zeros([M], tl.int32), tl.zeros([M], tl.int32)
            for at in tl.range(begin, end, N, num_stages=STAGES):
                scores, seen = _scored(q, sampled, sampled_by, places, at, first, place, end, D, N, UPCAST)  # fmt: skip
                scores = tl.where(seen, scores, float("-inf"))
                n0 += _reaching(scores, low)
                n1 += _reaching(scores, one)
                n2 += _reaching(scores, two)
                n3 += _reaching(scores, three)
            under = n0 < least  # the mean is too high, as the first bar of all
            bar = tl.where(n3 >= least, three, tl.where(n2 >= least, two, tl.where(n1 >= least, one, low)))  # fmt: skip
            reach = tl.where(n3 >= least, n3, tl.where(n2 >= least, n2, tl.where(n1 >= least, n1, n0)))  # fmt: skip
            above = tl.where(n1 < least, one, tl.where(n2 < least, two, tl.where(n3 < least, three, high)))  # fmt: skip
            high = tl.where(searching, tl.where(under, low, above), high)
            low = tl.where(searching, tl.where(under, bottom, bar), low)
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


@triton.jit
def _between(low, high, share: tl.constexpr):
    return low * (1 - share) + high * share


@triton.jit
def _reaching(scores, bar):
    return tl.sum((scores >= bar[:, None]).to(tl.int32), 1)
