"""The fewest best scores that hold a share of their softmax, in Triton: Top-k, then two launches more.

The softmax's sum is gathered in parts of a row; one program a row merges them, sorts the k best and cuts.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.select_topk.keys import float_of
from topkit.kernels.select_topk.triton_impl import UNRANKED, select_topk

# Scores of a part, at least, and parts of a row, at most.
PART, MOST_PARTS = 2048, 128
LOG2E = math.log2(math.e)


def select_mass(scores: Tensor, k: int, mass: float, scaling: float) -> tuple[Tensor, Tensor]:
    """Slots [R, min(k, N)] of scores [R, N] float32, contiguous in N, and which rows hold NaN [R].

    Rows that do are all -1.
    """
    rows, length = scores.shape
    ranked, nan = select_topk(scores, k, None, ranked=True)
    k, block = ranked.shape[1], PART
    while triton.cdiv(length, block) > MOST_PARTS:
        block *= 2
    parts = triton.cdiv(length, block)
    sums = scores.new_empty(rows, 2, parts)
    slots = torch.empty_like(ranked)
    early = {"launch_pdl": has_pdl(scores.device)}
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        _sums[(rows, parts)](
            scores, scores.stride(0), sums, length, scaling * LOG2E, block // PART, PART,
            num_warps=4, **early,
        )  # fmt: skip
        _cut[(rows,)](
            ranked, sums, slots, k, parts, scaling * LOG2E, mass,
            max(triton.next_power_of_2(k), 16), triton.next_power_of_2(parts),
            num_warps=4 if k <= 1024 else 8, **early,
        )  # fmt: skip
    return slots, nan


@triton.jit(do_not_specialize=["length"])
def _sums(scores, row_stride, sums, length, scale, times, BLOCK: tl.constexpr):
    """A part's highest logit to base 2, and the sum of powers beside it."""
    wait_then_launch()
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    scores += row.to(tl.int64) * row_stride
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(times):
        slot = (part * times + turn) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(scores + slot, mask=slot < length, other=float("-inf")) * scale
        higher = tl.maximum(top, x)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.exp2(x - base)
        top = higher
    highest = tl.max(top)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    sums += row.to(tl.int64) * 2 * parts + part
    tl.store(sums, highest)
    tl.store(sums + parts, tl.sum(total * tl.exp2(top - base)))


@triton.jit
def _cut(ranked, sums, slots, k, parts, scale, mass, K: tl.constexpr, PARTS: tl.constexpr):
    wait_then_launch()
    row, j, part = tl.program_id(0).to(tl.int64), tl.arange(0, K), tl.arange(0, PARTS)
    x = tl.load(ranked + row * k + j, mask=j < k, other=UNRANKED)
    x = tl.sort(x)
    sums += row * 2 * parts
    tops = tl.load(sums + part, mask=part < parts, other=float("-inf"))
    totals = tl.load(sums + parts + part, mask=part < parts, other=0.0)
    highest = tl.max(tops)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    whole = tl.sum(totals * tl.exp2(tops - base))
    # Above a slot stands its score's key, turned over.
    score = float_of((~(x >> 32)).to(tl.int32))
    chosen = x != UNRANKED
    weight = tl.where(chosen, tl.exp2(score * scale - base), 0.0) / tl.where(
        whole == 0.0, 1.0, whole
    )
    before = tl.cumsum(weight, 0) - weight
    stays = chosen & ((before < mass) | (j == 0))
    tl.store(slots + row * k + j, tl.where(stays, x & 0xFFFFFFFF, -1), mask=j < k)
