"""The scores between which each query's list of keys is cut, of which few are written.

Every SPARSITY-th key is scored, which tells a floor that somewhat more than the wanted keys of a row reach; then
every key is scored once, in tiles, and what reaches the floor is kept; the wanted one is sought among those.
Of n visible keys and k wanted, a row costs (1 + 3 / SPARSITY) n products, two comparisons of each score, and about
k + MARGIN (SPARSITY k)^1/2 + SPARE SPARSITY scores written and read: at 32K keys and 1 % of them 650, where all are
32,768. Two histograms in place of the list would need a second pass of products.
A score is one product over the head dimension, as it is where attention makes it again. A row that the sample misjudged,
and one that ties where it is cut, is cut again by all of its scores. Nothing waits for the GPU.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from topkit.kernels import backend
from topkit.kernels.topk_attention.cuts import Cuts
from topkit.kernels.topk_attention.row_again import cut_rows_again
from topkit.kernels.topk_attention.row_floors import floors_of_rows
from topkit.kernels.topk_attention.row_lists import cuts_of_rows
from topkit.kernels.topk_attention.sample import MARGIN, SPARE, Plan

# Room for candidates: a share of the bytes of queries and keys, and at least so many bytes.
SHARE, LEAST = 4, 1 << 26
# Scores of lists that a program looks at at a time.
AT_ONCE = 1 << 13
# Rows that are cut again without asking the host: it takes many in tiles.
AGAIN = 1 << 10
# Scores that a program that does so looks at at a time.
WIDE = 1 << 12


class Config(NamedTuple):
    """How a pass over keys is cut up, and how many programs a multiprocessor is to hold: registers are shared out."""

    queries: int
    keys: int
    warps: int
    stages: int
    resident: int

    @property
    def registers(self) -> int:
        """Of a thread."""
        return min(255, (1 << 16) // (32 * self.warps * self.resident))


class Configs(NamedTuple):
    """Those of the pass over the sample, of that over all keys, and of rows that are cut again."""

    floors: Config
    lists: Config
    again: Config


# By head dimension, up to it. 16 queries a warp: Hopper's products then leave a thread scores of two rows alone.
CONFIGS = {
    64: Configs(Config(64, 64, 4, 2, 3), Config(64, 128, 4, 3, 4), Config(64, 128, 8, 3, 2)),
    128: Configs(Config(64, 64, 4, 2, 3), Config(64, 64, 4, 2, 4), Config(64, 128, 8, 2, 2)),
}


def configs(dim: int) -> Configs:
    """Those for a head dimension."""
    return CONFIGS[min(d for d in CONFIGS if dim <= d)]


class Found(NamedTuple):
    """Cuts; the rows [n] left to be cut again, places in [B, Hq, Tq]; how many these are, and 1 for NaN [2].

    turn [1] is what programs take work by.
    """

    cuts: Cuts
    left: Tensor
    state: Tensor
    turn: Tensor


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
    numbers = torch.zeros(3, dtype=torch.int32, device=device)
    cuts = Cuts(low, torch.empty_like(low), last, torch.empty_like(low))
    found = Found(cuts, left, numbers[:2], numbers[2:])
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
    config = configs(dim).floors
    floors_of_rows[(triton.cdiv(count, config.queries), rows * heads)](
        queries, queries.stride(), sampled, sampled.stride(), places, kept, kept.stride(), start, out,
        count, ahead, heads, heads // keys.shape[1], MARGIN, SPARE,
        dim, config.queries, config.keys, plan.sparsity, plan.capacity, _upcast(queries), config.stages,
        num_warps=config.warps, maxnreg=config.registers,
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
    """Fill in the cuts, by what reaches the floors: of as many rows at a time as there is room for.

    It starts where `turn` is zero.
    """
    (rows, heads, count, dim), length = queries.shape, keys.shape[2]
    config = configs(dim).lists
    items = triton.cdiv(count, config.queries) * rows * heads
    room = max(LEAST, SHARE * (queries.nbytes + keys.nbytes))
    programs = room // (4 * config.queries * (plan.capacity + 1))
    programs = max(
        1, min(programs, items, config.resident * backend.multiprocessors(queries.device))
    )
    lists = torch.empty(
        programs, config.queries, plan.capacity + 1, dtype=torch.int32, device=queries.device
    )
    hopper = not backend.interpreted() and backend.capability(queries.device)[0] == 9
    each = config.keys // 4 if hopper and config.queries == 16 * config.warps else 0
    size = max(512, triton.next_power_of_2(plan.capacity))
    together = max(1, min(config.warps, AT_ONCE // size))
    cuts = out.cuts
    cuts_of_rows[(programs,)](
        queries, queries.stride(), keys, keys.stride(), kept, kept.stride(), start, floors, lists, out.turn,
        cuts.low, cuts.high, cuts.last, cuts.top, out.left, out.state,
        rows * heads, count, length - count, heads, heads // keys.shape[1],
        dim, config.queries, config.keys, plan.capacity, size, together, 32 * config.warps // together, each,
        _upcast(queries), config.stages, num_warps=config.warps, maxnreg=config.registers,
    )  # fmt: skip


def again(
    queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, slack: float, out: Found
) -> None:
    """Cut the rows that are left, AGAIN of them at most, by all of their scores."""
    (_, heads, count, dim), length = queries.shape, keys.shape[2]
    config = configs(dim).again
    programs = config.resident * backend.multiprocessors(queries.device)
    programs = min(programs, AGAIN, max(1, LEAST // (4 * length)))
    scratch = torch.empty(programs, length, dtype=torch.int32, device=queries.device)
    cut_rows_again[(programs,)](
        queries, queries.stride(), keys, keys.stride(), kept, kept.stride(), start, out.left, out.state, scratch,
        out.cuts.low, out.cuts.high, out.cuts.last, out.cuts.top, AGAIN, slack, count, length - count, heads,
        heads // keys.shape[1], length,
        dim, config.queries, config.keys, max(WIDE, triton.next_power_of_2(length // 512)), _upcast(queries),
        config.stages, num_warps=config.warps, maxnreg=config.registers,
    )  # fmt: skip


def _upcast(queries: Tensor) -> bool:
    """Triton's interpreter multiplies the bits of bfloat16."""
    return backend.interpreted() and queries.dtype == torch.bfloat16
