"""The one pass over all keys: a list a row of the scores that reach its floor, and the row's cut from it."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.select_topk.keys import INFINITY, float_of
from topkit.kernels.topk_attention.row_append import append_rows, count_rows, nothing_came
from topkit.kernels.topk_attention.row_ends import cut_lists
from topkit.kernels.topk_attention.row_places import first_seen


@triton.jit
def cuts_of_rows(
    queries, queries_by, keys, keys_by, kept, kept_by, start, floors, lists, turn,
    low, high, last, top, left, state,
    pairs, count, ahead, heads, group,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAPACITY: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The cuts of all queries, M of a head at a time, by whichever program is free.

    Shapes: lists [programs, M, 1 + CAPACITY], a program's own, so that they are few and stay near; turn [1], zero;
    floors, low, high, last, top [pairs = B * Hq, Tq]. ROWS lists are cut at a time, each by LANES threads.
    """
    lists += tl.program_id(0).to(tl.int64) * M * (CAPACITY + 1)
    blocks = tl.cdiv(count, M)
    item = tl.atomic_add(turn, 1, sem="relaxed")
    while item < blocks * pairs:
        # The longest first, and few heads at a time.
        index, begin = item // blocks, (blocks - 1 - item % blocks) * M
        _collect(
            queries, queries_by, keys, keys_by, start, floors, lists, index, begin, count, ahead, heads, group,
            D, M, N, CAPACITY, EACH, UPCAST, STAGES,
        )  # fmt: skip
        tl.debug_barrier()  # what others of its threads wrote is read
        cut_lists(
            lists, kept, kept_by, start, floors, low, high, last, top, left, state, index, begin, count, ahead, heads,
            M, CAPACITY, SIZE, ROWS, LANES,
        )  # fmt: skip
        tl.debug_barrier()  # before the next are written
        item = tl.atomic_add(turn, 1, sem="relaxed")


@triton.jit
def _collect(
    queries, queries_by, keys, keys_by, start, floors, lists, index, begin, count, ahead, heads, group,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAPACITY: tl.constexpr, EACH: tl.constexpr,
    UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Score the keys that M queries of a head see, and append to each one's list what reaches its floor."""
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    local = tl.arange(0, M)
    query = begin + local
    real = query < count
    d = tl.arange(0, D)
    queries += batch * queries_by[0] + head * queries_by[1]
    q = tl.load(queries + query.to(tl.int64)[:, None] * queries_by[2] + d[None, :], mask=real[:, None], other=0.0)  # fmt: skip
    floor = tl.load(floors + index.to(tl.int64) * count + query, mask=real, other=INFINITY)  # fmt: skip
    floor = float_of(floor)
    lists += local * (CAPACITY + 1)
    if EACH == 0:
        tl.store(lists, 0)
        tl.debug_barrier()  # before others of its threads count there
    first = first_seen(start, batch)
    place = tl.where(real, ahead + query, -1)
    lowest = ahead + begin
    highest = ahead + tl.minimum(begin + M, count) - 1
    keys += batch * keys_by[0] + (head // group) * keys_by[1]
    came = nothing_came(M, N)
    for slots in tl.range(first // N * N, highest + 1, N, num_stages=STAGES):
        slot = slots + tl.arange(0, N)
        at = slot.to(tl.int64)[None, :] * keys_by[2] + d[:, None]
        k = tl.load(keys + at, mask=slot[None, :] <= highest, other=0.0)
        scores = dot(q, k, UPCAST)
        if (slots < first) | (slots + N - 1 > lowest) | (lowest + M - 1 > highest):
            seen = (slot[None, :] >= first) & (slot[None, :] <= place[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        came = append_rows(scores, floor, lists, came, CAPACITY, EACH)
    count_rows(lists, came, N, EACH)
