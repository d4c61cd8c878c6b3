"""The scores between which each query's list of keys is cut, of which few are written.

Every SPARSITY-th key is scored, which tells a floor that somewhat more than the wanted keys of a row reach; then
every key is scored once, in tiles, and what reaches the floor is kept; the wanted one is sought among those.
Of n visible keys and k wanted, a row costs (1 + 1 / SPARSITY) n products, two comparisons of each score, n / SPARSITY
scores written and read again, and about k + MARGIN (SPARSITY k)^1/2 + 8 SPARSITY others: at 32K keys and 1 % of them
2,048 and 780, where all are 32,768. Two histograms in place of the list would need a second pass of products.
A score is one product over the head dimension, summed as FlexAttention sums it. A row that the sample misjudged,
and one that ties where it is cut, is left to `thresholds`.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels import backend
from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.select_topk.keys import INFINITY, float_of
from topkit.kernels.topk_attention.reference import products
from topkit.kernels.topk_attention.row_append import append_rows
from topkit.kernels.topk_attention.row_ends import ends_of_row, floor_of_row
from topkit.kernels.topk_attention.sample import MARGIN, SPARSITY, Plan

# Scores of the sample that are held at a time.
SAMPLED = 1 << 25
# Room for candidates: a share of the bytes of queries and keys, and at least so many bytes.
SHARE, LEAST = 4, 1 << 26


class Config(NamedTuple):
    """How the pass over all keys is cut up."""

    queries: int
    keys: int
    warps: int
    stages: int


# 16 queries a warp: Hopper's products then leave a thread scores of two rows alone.
CONFIG = Config(128, 64, 8, 2)


class Ends(NamedTuple):
    """The last score that stays and the first that is left out, -inf for none; which rows are told: [B, Hq, Tq]."""

    last: Tensor
    first: Tensor
    told: Tensor


def ends(queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, k: int) -> Ends:
    """The ends of all rows; k is the most that one keeps.

    Shapes: as topkit.kernels.topk_attention.topk_attention, kept [B or 1, Tq].
    """
    queries, keys = (x if x.stride(3) == 1 else x.contiguous() for x in (queries, keys))
    plan, shape = Plan(keys.shape[2], k), queries.shape[:3]
    kept = kept.expand(shape[0], -1)
    last = torch.empty(shape, dtype=torch.float32, device=queries.device)
    first, told = torch.empty_like(last), torch.empty_like(last, dtype=torch.bool)
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        rows = floors(queries, keys, kept, start, plan)
        _among(queries, keys, kept, start, plan, rows, Ends(last, first, told))
    return Ends(last, first, told)


def floors(queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, plan: Plan) -> Tensor:
    """A floor of each row [B, Hq, Tq], in the order of integers, from the sample's scores: a tile at a time."""
    (rows, heads, count, _), ahead = queries.shape, keys.shape[2] - queries.shape[2]
    out = torch.empty(rows, heads, count, dtype=torch.int32, device=queries.device)
    places = plan.places(queries.device)
    sampled = keys[:, :, places]
    width = max(1, SAMPLED // (rows * heads * len(places)))
    for begin in range(0, count, width):
        stop = min(begin + width, count)
        seen = triton.cdiv(ahead + stop, SPARSITY)
        scores = products(queries[:, :, begin:stop], sampled[:, :, :seen])
        floor_of_row[(stop - begin, rows * heads)](
            scores, scores.stride(), places, kept, kept.stride(), start, out, out.stride(),
            begin, ahead, heads, seen, MARGIN, plan.capacity, max(512, triton.next_power_of_2(seen)),
            128, num_warps=4,
        )  # fmt: skip
    return out


def _among(
    queries: Tensor,
    keys: Tensor,
    kept: Tensor,
    start: Tensor | None,
    plan: Plan,
    floors: Tensor,
    out: Ends,
) -> None:
    """Fill in the ends, by what reaches the floors: as many rows at a time as there is room for."""
    (rows, heads, count, dim), length = queries.shape, keys.shape[2]
    room = max(LEAST, SHARE * (queries.nbytes + keys.nbytes)) // (4 * plan.capacity + 4)
    config = CONFIG
    width = max(1, room // (rows * heads * config.queries)) * config.queries
    width = min(width, triton.cdiv(count, config.queries) * config.queries)
    lists = torch.empty(
        rows * heads, width, plan.capacity + 1, dtype=torch.int32, device=queries.device
    )
    hopper = not backend.interpreted() and backend.capability(queries.device)[0] == 9
    each = config.keys // 4 if hopper and config.queries == 16 * config.warps else 0
    size = max(512, triton.next_power_of_2(plan.capacity))
    for begin in range(0, count, width):
        lists[..., 0].zero_()
        part = min(width, count - begin)
        _collect[(triton.cdiv(part, config.queries), rows * heads)](
            queries, queries.stride(), keys, keys.stride(), start, floors, floors.stride(), lists,
            begin, count, length - count, heads, heads // keys.shape[1], width,
            dim, config.queries, config.keys, plan.capacity, each,
            backend.interpreted() and queries.dtype == torch.bfloat16, config.stages,
            num_warps=config.warps,
        )  # fmt: skip
        ends_of_row[(part, rows * heads)](
            lists, kept, kept.stride(), start, floors, floors.stride(), *out,
            begin, length - count, heads, width, plan.capacity, size, num_warps=max(1, size // 2048),
        )  # fmt: skip


@triton.jit(do_not_specialize=["begin"])
def _collect(
    queries, queries_by, keys, keys_by, start, floors, floors_by, lists,
    begin, count, ahead, heads, group, width,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAPACITY: tl.constexpr, EACH: tl.constexpr,
    UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Score the keys that M queries of a head see, and append to each one's list what reaches its floor."""
    index = tl.program_id(1)
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    local = tl.program_id(0) * M + tl.arange(0, M)
    query = begin + local
    real = query < count
    d = tl.arange(0, D)
    queries += batch * queries_by[0] + head * queries_by[1]
    q = tl.load(queries + query.to(tl.int64)[:, None] * queries_by[2] + d[None, :], mask=real[:, None], other=0.0)  # fmt: skip
    floor = tl.load(floors + batch * floors_by[0] + head * floors_by[1] + query, mask=real, other=INFINITY)  # fmt: skip
    floor = float_of(floor)
    lists += (index.to(tl.int64) * width + local) * (CAPACITY + 1)
    first = 0
    if start is not None:
        first = tl.load(start + batch).to(tl.int32)
    place = tl.where(real, ahead + query, -1)
    lowest = ahead + begin + tl.program_id(0) * M
    highest = ahead + tl.minimum(begin + tl.program_id(0) * M + M, count) - 1
    keys += batch * keys_by[0] + (head // group) * keys_by[1]
    for slots in tl.range(first // N * N, highest + 1, N, num_stages=STAGES):
        slot = slots + tl.arange(0, N)
        at = slot.to(tl.int64)[None, :] * keys_by[2] + d[:, None]
        k = tl.load(keys + at, mask=slot[None, :] <= highest, other=0.0)
        scores = dot(q, k, UPCAST)
        if (slots < first) | (slots + N - 1 > lowest) | (lowest + M - 1 > highest):
            seen = (slot[None, :] >= first) & (slot[None, :] <= place[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        append_rows(scores, floor, lists, CAPACITY, EACH)
