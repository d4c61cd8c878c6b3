"""The scores between which each query's list of keys is cut, of which few are written.

Every SPARSITY-th key is scored, which tells a floor that somewhat more than the wanted keys of a row reach; then
every key is scored once, in tiles, and what reaches the floor is kept; the wanted one is sought among those.
Of n visible keys and k wanted, a row costs (1 + 5 / SPARSITY) n products, two comparisons of each score, and about
k + MARGIN (SPARSITY k)^1/2 + 8 SPARSITY scores written and read: at 32K keys and 1 % of them 780, where all are
32,768. Two histograms in place of the list would need a second pass of products.
A score is one product over the head dimension, summed as FlexAttention sums it. A row that the sample misjudged,
and one that ties where it is cut, is cut again by all of its scores. Nothing waits for the GPU.
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
from topkit.kernels.topk_attention.cuts import Cuts
from topkit.kernels.topk_attention.row_again import cut_rows_again
from topkit.kernels.topk_attention.row_append import append_rows
from topkit.kernels.topk_attention.row_ends import cut_of_row
from topkit.kernels.topk_attention.row_floors import floors_of_rows
from topkit.kernels.topk_attention.row_places import first_seen
from topkit.kernels.topk_attention.sample import MARGIN, SPARE, SPARSITY, Plan

# Room for candidates: a share of the bytes of queries and keys, and at least so many bytes.
SHARE, LEAST = 4, 1 << 26
# Rows that are cut again without asking the host: it takes many in tiles.
AGAIN = 1 << 10
# Programs that do so, a multiprocessor; and scores that one looks at at a time.
PROGRAMS, WIDE = 2, 1 << 12


class Config(NamedTuple):
    """How a pass over keys is cut up."""

    queries: int
    keys: int
    warps: int
    stages: int


# 16 queries a warp: Hopper's products then leave a thread scores of two rows alone.
CONFIG = Config(64, 128, 4, 3)
# That of the pass over the sample.
FLOORS = Config(64, 64, 4, 2)


class Found(NamedTuple):
    """Cuts; the rows [n] left to be cut again, places in [B, Hq, Tq]; how many these are, and 1 for NaN [2]."""

    cuts: Cuts
    left: Tensor
    state: Tensor


def cut_rows(
    queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, k: int, slack: float = 0.0
) -> Found:
    """The cuts of all rows, but for rows that are left beyond the first AGAIN; k is the most that one keeps.

    Shapes: as topkit.kernels.topk_attention.topk_attention, kept [B or 1, Tq].
    """
    queries, keys = (x if x.stride(3) == 1 else x.contiguous() for x in (queries, keys))
    plan, shape, device = Plan(keys.shape[2], k), queries.shape[:3], queries.device
    kept, start = kept.expand(shape[0], -1), None if start is None else start.contiguous()
    low = torch.empty(shape, dtype=torch.float32, device=device)
    last = torch.empty(shape, dtype=torch.int32, device=device)
    left = torch.empty(shape.numel(), dtype=torch.int32, device=device)
    state = torch.zeros(2, dtype=torch.int32, device=device)
    found = Found(Cuts(low, torch.empty_like(low), last, torch.empty_like(low)), left, state)
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        rows = floors(queries, keys, kept, start, plan)
        among(queries, keys, kept, start, plan, rows, found)
        again(queries, keys, kept, start, slack, found)
    return found


def floors(queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, plan: Plan) -> Tensor:
    """A floor of each row [B, Hq, Tq], in the order of integers, from the sample's scores."""
    (rows, heads, count, dim), ahead = queries.shape, keys.shape[2] - queries.shape[2]
    out = torch.empty(rows, heads, count, dtype=torch.int32, device=queries.device)
    places = plan.places(queries.device)
    sampled = keys[:, :, places]
    config = FLOORS
    floors_of_rows[(triton.cdiv(count, config.queries), rows * heads)](
        queries, queries.stride(), sampled, sampled.stride(), places, kept, kept.stride(), start, out,
        count, ahead, heads, heads // keys.shape[1], MARGIN, SPARE,
        dim, config.queries, config.keys, SPARSITY, plan.capacity, _upcast(queries), config.stages,
        num_warps=config.warps,
    )  # fmt: skip
    return out


def among(
    queries: Tensor,
    keys: Tensor,
    kept: Tensor,
    start: Tensor | None,
    plan: Plan,
    floors: Tensor,
    out: Found,
) -> None:
    """Fill in the cuts, by what reaches the floors: as many rows at a time as there is room for."""
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
        part = min(width, count - begin)
        _collect[(triton.cdiv(part, config.queries), rows * heads)](
            queries, queries.stride(), keys, keys.stride(), start, floors, lists,
            begin, count, length - count, heads, heads // keys.shape[1], width,
            dim, config.queries, config.keys, plan.capacity, each, _upcast(queries), config.stages,
            num_warps=config.warps,
        )  # fmt: skip
        cut_of_row[(part, rows * heads)](
            lists, kept, kept.stride(), start, floors, out.cuts.low, out.cuts.high, out.cuts.last,
            out.cuts.top, out.left, out.state,
            begin, count, length - count, heads, width, plan.capacity, size, num_warps=max(1, size // 2048),
        )  # fmt: skip


def again(
    queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, slack: float, out: Found
) -> None:
    """Cut the rows that are left, AGAIN of them at most, by all of their scores."""
    (_, heads, count, dim), length = queries.shape, keys.shape[2]
    programs = min(
        PROGRAMS * backend.multiprocessors(queries.device), AGAIN, max(1, LEAST // (4 * length))
    )
    scratch = torch.empty(programs, length, dtype=torch.int32, device=queries.device)
    config = CONFIG
    cut_rows_again[(programs,)](
        queries, queries.stride(), keys, keys.stride(), kept, kept.stride(), start, out.left, out.state, scratch,
        out.cuts.low, out.cuts.high, out.cuts.last, out.cuts.top, AGAIN, slack, count, length - count, heads,
        heads // keys.shape[1], length,
        dim, config.queries, config.keys, WIDE, _upcast(queries), num_warps=config.warps,
    )  # fmt: skip


def _upcast(queries: Tensor) -> bool:
    """Triton's interpreter multiplies the bits of bfloat16."""
    return backend.interpreted() and queries.dtype == torch.bfloat16


@triton.jit(do_not_specialize=["begin"])
def _collect(
    queries, queries_by, keys, keys_by, start, floors, lists,
    begin, count, ahead, heads, group, width,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAPACITY: tl.constexpr, EACH: tl.constexpr,
    UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Score the keys that M queries of a head see, and append to each one's list what reaches its floor."""
    index, block = tl.program_id(1), tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    local = block * M + tl.arange(0, M)
    query = begin + local
    real = query < count
    d = tl.arange(0, D)
    queries += batch * queries_by[0] + head * queries_by[1]
    q = tl.load(queries + query.to(tl.int64)[:, None] * queries_by[2] + d[None, :], mask=real[:, None], other=0.0)  # fmt: skip
    floor = tl.load(floors + index.to(tl.int64) * count + query, mask=real, other=INFINITY)  # fmt: skip
    floor = float_of(floor)
    lists += (index.to(tl.int64) * width + local) * (CAPACITY + 1)
    tl.store(lists, 0)
    tl.debug_barrier()  # before others of its threads count there
    first = first_seen(start, batch)
    place = tl.where(real, ahead + query, -1)
    lowest = ahead + begin + block * M
    highest = ahead + tl.minimum(begin + block * M + M, count) - 1
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
