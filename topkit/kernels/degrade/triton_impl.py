"""Lists with a share of their keys lost, in Triton: what may take their places, the best of it, the new list."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.counter_noise.triton_impl import (
    key_of,
    place_of,
    seed_arguments,
    tag_of,
    uniform,
)
from topkit.kernels.degrade.loss import MISSES, Loss
from topkit.kernels.select_topk import select_topk

# Slots of a program.
BLOCK = 1024
UNIFORM, BOUNDARY, HEAVY, RECENT, PAGE = (tl.constexpr(n) for n in range(len(MISSES)))


def degrade(
    slots: Tensor,
    order: Tensor | None,
    most: Tensor | None,
    floor: Tensor | None,
    loss: Loss,
    stop: Tensor,
    start: Tensor | None,
) -> Tensor:
    """As the reference's, of checked arguments."""
    (rows, heads, count, k), length = slots.shape, 1 if most is None else most.shape[3]
    slots, out = slots.contiguous(), torch.empty_like(slots, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    fillers, among, m = None, None, 1
    with torch.cuda.device_of(slots):  # Triton launches on the current device
        if order is not None and most is not None and floor is not None:
            most, order = most.contiguous(), order.contiguous()
            among = torch.empty_like(most)
            _below[(rows * heads * count, triton.cdiv(length, BLOCK))](
                order, 0 if len(order) == 1 else order.stride(0), most, floor.contiguous(), among,
                length, heads * count, BLOCK,
            )  # fmt: skip
            fillers = select_topk(among, loss.most(k), order=None, check=False)
            m = fillers.shape[-1]
        seeds = seed_arguments(loss.seed, loss.keys, loss.pages, loss.toss)
        _degrade[(rows * heads * count,)](
            slots, fillers, among, out, stop, 0 if len(stop) == 1 else stop.stride(0), stop.stride(1),
            start, *seeds, loss.chance, loss.whole, loss.share % 1, k, m, length, heads, count,
            isinstance(loss.seed, int), MISSES.index(loss.miss), loss.further, loss.per_query,
            loss.heads_together, loss.page, triton.next_power_of_2(k), triton.next_power_of_2(m),
            num_warps=1 if k <= 64 else 4,
        )  # fmt: skip
    return out


@triton.jit
def _below(order, order_by_row, most, floor, out, length, each, BLOCK: tl.constexpr):
    """The order of slots that may take a place; -inf of the others."""
    at = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = n < length
    high = tl.load(most + at * length + n, mask=there, other=0.0)
    low = tl.load(floor + at)
    own = tl.load(order + at // each * order_by_row + at % each * length + n, mask=there, other=0.0)
    may = (high > -float("inf")) & (high < low)
    tl.store(out + at * length + n, tl.where(may, own, -float("inf")), mask=there)


@triton.jit(do_not_specialize=["seed", "keys", "pages", "toss", "whole", "k", "m", "length"])
def _degrade(
    slots, fillers, among, out, stop, stop_by_row, stop_by_query, start, seed, keys, pages, toss,
    chance, whole, fraction, k, m, length, heads, count,
    KNOWN: tl.constexpr, MISS: tl.constexpr, FURTHER: tl.constexpr, PER_QUERY: tl.constexpr,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, K: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0)
    query, head, row = at % count, at // count % heads, at // count // heads
    first = tl.full((), 0, tl.int32)
    if start is not None:
        first = tl.load(start + row).to(tl.int32)
    seen = tl.load(stop + row * stop_by_row + query * stop_by_query).to(tl.int32) - first
    position = seen.to(tl.uint32, bitcast=True)
    reached = position if PER_QUERY else tl.full((), 0, tl.uint32)
    unit = (head // HEADS).to(tl.int32).to(tl.uint32, bitcast=True)
    own = slots + at.to(tl.int64) * k
    i = tl.arange(0, K)
    slot = tl.load(own + i, mask=i < k, other=-1).to(tl.int32)
    key_place = place_of(reached, unit, tag_of(seed, keys, KNOWN))
    if FURTHER:
        if MISS == PAGE:
            lost = uniform(key_of(slot - first, SLOTS), key_place) < chance
        else:
            lost = uniform(key_of(slot - first, 1), key_place) < chance
    else:
        if MISS == BOUNDARY:
            rank = k - 1 - i
        elif MISS == HEAVY:
            rank = i
        else:
            page_place = place_of(reached, unit, tag_of(seed, pages, KNOWN))
            high, low = _worst(slot, first, key_place, page_place, MISS, SLOTS)
            rank = tl.zeros((K,), tl.int32)
            for j in range(k):
                other = tl.load(own + j).to(tl.int32)
                its_high, its_low = _worst(other, first, key_place, page_place, MISS, SLOTS)
                before = (its_low > low) | ((its_low == low) & (j < i))
                rank += ((its_high > high) | ((its_high == high) & before)).to(tl.int32)
        toss_place = place_of(
            position, head.to(tl.int32).to(tl.uint32, bitcast=True), tag_of(seed, toss, KNOWN)
        )
        more = uniform(tl.full((), 0, tl.uint32), toss_place) < fraction
        lost = rank < whole + more.to(tl.int32)
    lost = lost & (seen > k) & (i < k)
    kept = (slot >= 0) & (~lost) & (i < k)
    stays = tl.sum(kept.to(tl.int32))
    into = out + at.to(tl.int64) * k
    place = tl.cumsum(kept.to(tl.int32)) - 1
    tl.store(into + place, slot.to(tl.int64), mask=kept)
    gone = tl.sum(lost.to(tl.int32))
    used = tl.full((), 0, tl.int32)
    if fillers is not None:
        mine, orders = fillers + at.to(tl.int64) * m, among + at.to(tl.int64) * length
        n = tl.arange(0, M)
        filler = tl.load(mine + n, mask=n < m, other=-1)
        there = filler >= 0
        value = tl.load(orders + filler, mask=there, other=-float("inf"))
        turn = tl.zeros((M,), tl.int32)
        for j in range(m):
            other = tl.load(mine + j)
            its = tl.load(orders + other, mask=other >= 0, other=-float("inf"))
            sooner = (its > value) | ((its == value) & (other < filler))
            turn += (sooner & (other >= 0)).to(tl.int32)
        filled = there & (turn < gone) & (stays + turn < k)
        tl.store(into + stays + turn, filler, mask=filled)
        used = tl.sum(filled.to(tl.int32))
    tl.store(into + i, tl.full((K,), -1, tl.int64), mask=(i >= stays + used) & (i < k))


@triton.jit
def _worst(slot, first, key_place, page_place, MISS: tl.constexpr, SLOTS: tl.constexpr):
    """Two numbers of a slot, of which the greatest is lost first: by the one, then by the other."""
    if MISS == RECENT:
        high, low = slot.to(tl.float32), slot.to(tl.float32)
    elif MISS == PAGE:
        high = uniform(key_of(slot - first, SLOTS), page_place)
        low = uniform(key_of(slot - first, 1), key_place)
    else:
        high = uniform(key_of(slot - first, 1), key_place)
        low = high
    return high, low
