"""Softmax attention over the keys that pass their query's cut, forward and backward, a tile of scores at a time.

A row's best score is known with its cut, so that no running maximum is kept, and nothing that is summed is scaled
anew. What decides is the product itself, before it is scaled: as it was when the cuts were found.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.topk_attention.row_places import first_seen


@triton.jit
def attend(
    queries, queries_by, keys, keys_by, values, values_by, low, high, last, top, start, out, lse, ties,
    count, ahead, heads, group, scale,
    D: tl.constexpr, DV: tl.constexpr, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The outputs of M queries of a head, the logarithms of their sums, and whether one of them is tied.

    Shapes: low, high, last, top, lse [B, Hq, Tq]; out [B, Hq, Tq, DV]; ties [B * Hq, blocks of M queries]. scale
    and lse are of base 2; lse is inf where nothing stays.
    """
    index, block = tl.program_id(1), tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    query, row, real = _rows(index, block * M, count, M)
    q = _tile(queries + batch * queries_by[0] + head * queries_by[1], query, queries_by[2], real, D)
    its_low, its_high, its_last = _cuts(low, high, last, row, real)
    tied = tl.max(its_last) >= 0
    tl.store(ties + index * tl.num_programs(0) + block, tied.to(tl.int32))
    best = tl.load(top + row, mask=real, other=0.0) * scale
    first = first_seen(start, batch)
    place, lowest = ahead + query, ahead + block * M
    highest = ahead + tl.minimum(block * M + M, count) - 1
    keys += batch * keys_by[0] + (head // group) * keys_by[1]
    values += batch * values_by[0] + (head // group) * values_by[1]
    total, acc = tl.zeros([M], tl.float32), tl.zeros([M, DV], tl.float32)
    for at in tl.range(first // N * N, highest + 1, N, num_stages=STAGES):
        slot = at + tl.arange(0, N)
        seen = (slot >= first) & (slot <= highest)
        k, v = _tile(keys, slot, keys_by[2], seen, D), _tile(values, slot, values_by[2], seen, DV)
        edge = tied | (at < first) | (at + N - 1 > lowest)
        weights = _weights(
            dot(q, tl.trans(k), UPCAST), slot[None, :], place[:, None], first, its_low[:, None],
            its_high[:, None], its_last[:, None], best[:, None], scale, edge,
        )  # fmt: skip
        total += tl.sum(weights, 1)
        acc += dot(weights.to(v.dtype), v, UPCAST)
    some = total > 0
    tl.store(lse + row, tl.where(some, best + tl.log2(total), float("inf")), mask=real)
    acc = acc / tl.where(some, total, 1.0)[:, None]
    _put(out, row, acc, real, DV)


@triton.jit
def of_queries(
    queries, queries_by, keys, keys_by, values, values_by, low, high, last, start, out, lse, by_out,
    delta, made, count, ahead, heads, group, scale, scaling,
    D: tl.constexpr, DV: tl.constexpr, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients of M queries of a head, and what each one's weights have in common, `delta`.

    Shapes: as of `attend`; out, by_out [B, Hq, Tq, DV], by_out the gradient of out; delta [B, Hq, Tq]; made
    [B, Hq, Tq, D].
    """
    index, block = tl.program_id(1), tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    query, row, real = _rows(index, block * M, count, M)
    q = _tile(queries + batch * queries_by[0] + head * queries_by[1], query, queries_by[2], real, D)
    its_low, its_high, its_last = _cuts(low, high, last, row, real)
    tied = tl.max(its_last) >= 0
    sums = tl.load(lse + row, mask=real, other=float("inf"))
    grad, its_out = _tile(by_out, row, DV, real, DV), _tile(out, row, DV, real, DV)
    common = tl.sum(grad.to(tl.float32) * its_out.to(tl.float32), 1)
    tl.store(delta + row, common, mask=real)
    first = first_seen(start, batch)
    place, lowest = ahead + query, ahead + block * M
    highest = ahead + tl.minimum(block * M + M, count) - 1
    keys += batch * keys_by[0] + (head // group) * keys_by[1]
    values += batch * values_by[0] + (head // group) * values_by[1]
    acc = tl.zeros([M, D], tl.float32)
    for at in tl.range(first // N * N, highest + 1, N, num_stages=STAGES):
        slot = at + tl.arange(0, N)
        seen = (slot >= first) & (slot <= highest)
        k, v = _tile(keys, slot, keys_by[2], seen, D), _tile(values, slot, values_by[2], seen, DV)
        edge = tied | (at < first) | (at + N - 1 > lowest)
        weights = _weights(
            dot(q, tl.trans(k), UPCAST), slot[None, :], place[:, None], first, its_low[:, None],
            its_high[:, None], its_last[:, None], sums[:, None], scale, edge,
        )  # fmt: skip
        of_scores = weights * (dot(grad, tl.trans(v), UPCAST) - common[:, None])
        acc += dot(of_scores.to(k.dtype), k, UPCAST)
    _put(made, row, acc * scaling, real, D)


@triton.jit
def of_keys_and_values(
    queries, queries_by, keys, keys_by, values, values_by, low, high, last, start, lse, ties, by_out,
    delta, of_keys, of_values, count, length, heads, group, scale, scaling,
    D: tl.constexpr, DV: tl.constexpr, M: tl.constexpr, N: tl.constexpr, TIES: tl.constexpr,
    UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients of N keys and values of a head, from the queries of all heads of its group.

    Shapes: as of `of_queries`; ties [B * Hq, blocks of TIES queries]; of_keys [B, Hk, T, D], of_values
    [B, Hk, T, DV]. Scores stand here with the keys as rows.
    """
    index, begin = tl.program_id(1), tl.program_id(0) * N  # the first are seen by the most
    groups = heads // group
    batch, its_group = (index // groups).to(tl.int64), (index % groups).to(tl.int64)
    slot, row, real = _rows(index, begin, length, N)
    first, ahead = first_seen(start, batch), length - count
    seen = real & (slot >= first)
    k = _tile(keys + batch * keys_by[0] + its_group * keys_by[1], slot, keys_by[2], seen, D)
    v = _tile(values + batch * values_by[0] + its_group * values_by[1], slot, values_by[2], seen, DV)  # fmt: skip
    by_keys, by_values = tl.zeros([N, D], tl.float32), tl.zeros([N, DV], tl.float32)
    for member in range(group):
        head = its_group * group + member
        its = batch * heads + head
        its_queries = queries + batch * queries_by[0] + head * queries_by[1]
        its_ties = ties + its * tl.cdiv(count, TIES)
        for at in tl.range(tl.maximum(begin - ahead, 0) // M * M, count, M, num_stages=STAGES):
            query, place, there = _rows(its, at, count, M)
            q = _tile(its_queries, query, queries_by[2], there, D)
            grad = _tile(by_out, place, DV, there, DV)
            its_high = tl.load(high + place, mask=there, other=float("inf"))
            sums = tl.load(lse + place, mask=there, other=float("inf"))
            common = tl.load(delta + place, mask=there, other=0.0)
            edge = (tl.load(its_ties + at // TIES) > 0) | (begin < first) | (begin + N - 1 > ahead + at)  # fmt: skip
            scores = dot(k, tl.trans(q), UPCAST)
            stays = scores > its_high[None, :]
            if edge:
                its_low = tl.load(low + place, mask=there, other=float("inf"))
                its_last = tl.load(last + place, mask=there, other=-1)
                stays = _stays(
                    scores, slot[:, None], (ahead + query)[None, :], first, its_low[None, :],
                    its_high[None, :], its_last[None, :],
                )  # fmt: skip
            weights = tl.where(stays, tl.exp2(scores * scale - sums[None, :]), 0.0)
            by_values += dot(weights.to(grad.dtype), grad, UPCAST)
            of_scores = weights * (dot(v, tl.trans(grad), UPCAST) - common[None, :])
            by_keys += dot(of_scores.to(q.dtype), q, UPCAST)
    _put(of_keys, row, by_keys * scaling, real, D)
    _put(of_values, row, by_values, real, DV)


@triton.jit
def _weights(scores, slot, place, first, low, high, last, reference, scale, edge):
    """2 ^ (scale x scores - reference) of what stays, zero of what does not.

    edge: whether one of the queries is tied, or does not see all of the keys.
    """
    stays = scores > high
    if edge:
        stays = _stays(scores, slot, place, first, low, high, last)
    return tl.where(stays, tl.exp2(scores * scale - reference), 0.0)


@triton.jit
def _stays(scores, slot, place, first, low, high, last):
    return (scores > tl.where(slot <= last, low, high)) & (slot <= place) & (slot >= first)


@triton.jit
def _rows(index, begin, count, SIZE: tl.constexpr):
    """SIZE places of a head from `begin` on, where these stand in [heads, count], and which there are."""
    at = begin + tl.arange(0, SIZE)
    return at, index.to(tl.int64) * count + at, at < count


@triton.jit
def _cuts(low, high, last, row, real):
    none = float("inf")
    its_low, its_high = tl.load(low + row, mask=real, other=none), tl.load(high + row, mask=real, other=none)  # fmt: skip
    return its_low, its_high, tl.load(last + row, mask=real, other=-1)


@triton.jit
def _tile(base, at, by, mask, WIDTH: tl.constexpr):
    """Vectors that are `by` elements apart: [n, WIDTH]."""
    places = at.to(tl.int64)[:, None] * by + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + places, mask=mask[:, None], other=0.0)


@triton.jit
def _put(base, at, x, mask, WIDTH: tl.constexpr):
    places = at.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(base + places, x.to(base.dtype.element_ty), mask=mask[:, None])
