"""Exact top-k of long float32 rows, in one pass over them.

A sample of each row gives a threshold that somewhat more than k elements exceed; one pass over the row
collects those; one program a row then finds the exact k among the few. A row that the sample misjudged,
by bad luck or by its many ties, is searched itself instead: exact as well, only slower.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import launch_then_wait, wait_then_launch
from topkit.kernels.select_topk import order
from topkit.kernels.select_topk.bisect_topk import middle
from topkit.kernels.select_topk.histogram_topk import keep_best, store_floor
from topkit.kernels.select_topk.keys import (
    INFINITY,
    LOWEST,
    MINUS_INFINITY,
    NOT_A_NUMBER,
    float_of,
    keys_of,
)
from topkit.kernels.warp_append import append

UNRANKED = tl.constexpr(order.LAST)

# A row's state: the least key that is collected, how many were, whether one is NaN, how many slots are
# written. It stands in a cache line of its own: counters that share one are added to one by one.
STATE = tl.constexpr(32)
COUNT = tl.constexpr(1)
NAN = tl.constexpr(2)
WRITTEN = tl.constexpr(3)

# More than any slot that is named.
MOST_SLOTS = tl.constexpr(1 << 30)

# How far the rank of the threshold in the sample is kept from the k-th: standard deviations.
MARGIN = 4.0
# Rows that are short enough are looked at at once.
DIRECT = 1 << 13
# Elements that a program holds, at least: several for each of its threads.
LEAST = 1 << 10
# Rows that leave multiprocessors idle: a larger sample and more threads at the end then cost nothing.
FEW = 128
# Elements that a program reads, and its warps, for each step.
FILTERED, FILTER_WARPS = 2048, 4
SEARCHED = 4096
# Of a thread of the last step: two programs of 8 warps then fit a multiprocessor.
MOST_REGISTERS = 128


@dataclass(frozen=True)
class Plan:
    """How rows of `length` are sampled, and how many candidates there is room for."""

    length: int
    k: int
    sparsity: int  # elements of the row for one of the sample
    most: int = 1 << 13

    @property
    def direct(self) -> bool:
        return self.length <= max(DIRECT, _power_of_two(self.k))

    @property
    def sample(self) -> int:
        return min(max(_power_of_two(self.length // self.sparsity), LEAST), self.most)

    @property
    def capacity(self) -> int:
        if self.direct:
            return max(_power_of_two(self.length), LEAST)
        share = self.length / self.sample
        low = self.k / share + MARGIN * math.sqrt(self.k / share) + 8
        high = low + max(4.0, low / 4)
        return max(_power_of_two(math.ceil((high + MARGIN * math.sqrt(high)) * share)), 2 * LEAST)


@dataclass(frozen=True)
class Work:
    """What the steps hand on: state [R, STATE] int32; candidates [R, capacity] int64.

    A candidate is its score, in the lower half, and its slot.
    """

    state: Tensor
    candidates: Tensor

    @classmethod
    def of(cls, rows: int, plan: Plan, device: torch.device) -> Work:
        room = 1 if plan.direct else plan.capacity
        return cls(
            torch.empty(rows, STATE.value, dtype=torch.int32, device=device),
            torch.empty(rows, room, dtype=torch.int64, device=device),
        )


def select_topk(
    scores: Tensor,
    k: int,
    stop: Tensor | None = None,
    ranked: bool = False,
    named: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The slots of the k best of each row, in no order, and which rows hold NaN.

    Shapes: scores [R, N] float32, contiguous in N; stop [R], one past the last slot that counts;
    named [R, N] int64, the slots of rows that are short enough to be looked at at once ->
    slots [R, min(k, N)] int64, -1 last, or as topkit.kernels.select_topk.order takes what is ranked;
    NaN [R] int32, and such rows are all -1.
    """
    rows, length = scores.shape
    plan = Plan(length, min(k, length), 32 if rows <= FEW else 64)
    work = Work.of(rows, plan, scores.device)
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        if not plan.direct:
            threshold(scores, stop, plan, work, spread=True)
            _filter[(rows, triton.cdiv(length, FILTERED))](
                scores, scores.stride(0), stop, length, work.state, work.candidates,
                plan.capacity, FILTERED, FILTERED // (32 * FILTER_WARPS),
                num_warps=FILTER_WARPS, launch_pdl=has_pdl(scores.device),
            )  # fmt: skip
        return finish(scores, stop, plan, work, ranked, named)


def threshold(sampled: Tensor, stop: Tensor | None, plan: Plan, work: Work, spread: bool) -> None:
    """Set each row's threshold from a sample, and its counters to zero.

    `sampled` [R, sample] is one; with `spread` it is drawn from [R, N], an element from each stretch.
    """
    warps = _warps(plan.sample)
    _threshold[(work.state.shape[0],)](
        sampled, sampled.stride(0), stop, plan.length, plan.k * plan.sample / plan.length, MARGIN,
        work.state, plan.sample, plan.capacity, spread, 32 * warps,
        num_warps=warps, launch_pdl=has_pdl(work.state.device),
    )  # fmt: skip


def finish(
    scores: Tensor,
    stop: Tensor | None,
    plan: Plan,
    work: Work,
    ranked: bool,
    named: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The exact k of each row [R, k], from its candidates, and which rows hold NaN [R].

    Scores [R, N] are read of rows alone that are short, or whose candidates do not hold the answer.
    """
    assert named is None or (plan.direct and named.is_contiguous())
    rows = work.state.shape[0]
    slots = torch.empty(rows, plan.k, dtype=torch.int64, device=scores.device)
    warps = 16 if rows <= FEW and plan.capacity >= 1 << 13 else _warps(plan.capacity)
    _finish[(rows,)](
        scores, scores.stride(0), stop, plan.length, plan.k, work.state, work.candidates, slots, named,
        ranked, plan.capacity, plan.direct, SEARCHED, 32 * warps,
        num_warps=warps, maxnreg=MOST_REGISTERS, launch_pdl=has_pdl(scores.device),
    )  # fmt: skip
    return slots, work.state[:, NAN.value]


def _warps(elements: int) -> int:
    """Of a program that holds so many elements: more wait longer for one another."""
    return 4 if elements <= 2048 else 8 if elements <= 8192 else 16


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


@triton.jit
def _end(stop, length, row):
    """One past the last slot of a row that counts."""
    end = length
    if stop is not None:
        end = tl.minimum(tl.load(stop + row, cache_modifier=".cg"), length).to(tl.int32)
    return end


@triton.jit
def stretch(i, length, SAMPLE: tl.constexpr):
    """A place in each of SAMPLE stretches of a row, by a hash: no period of the row can follow it."""
    inside = ((((i * 0x45D9F3B) >> 7) & 0xFFFF) * (length // SAMPLE)) >> 16
    return ((i.to(tl.int64) * length) // SAMPLE).to(tl.int32) + inside


@triton.jit
def _threshold(
    sampled, row_stride, stop, length, share, margin, state,
    SAMPLE: tl.constexpr, CAPACITY: tl.constexpr, SPREAD: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    if SPREAD:
        wait_then_launch()
    else:  # a filter behind it reads codes and queries, which were there before the sample
        launch_then_wait()
    row = tl.program_id(0)
    end = _end(stop, length, row)
    place = tl.arange(0, SAMPLE)
    sampled += row.to(tl.int64) * row_stride
    if SPREAD:
        place = stretch(place, length, SAMPLE)
        x = tl.load(sampled + place, mask=place < end, other=float("-inf"))
    else:
        x = tl.load(sampled + place)
    # Of the sample, `share` are expected among the k best, with a standard deviation of its root.
    least = (share + margin * tl.sqrt(share) + 8).to(tl.int32)
    most = least + tl.maximum(least // 4, 4)
    if end <= CAPACITY:  # there is room for all that may be chosen
        least, most = 1 << 30, 1 << 30
    state += row.to(tl.int64) * STATE
    # Many ties are left to the last step, but for infinity's: nothing is above it.
    store_floor(keys_of(x), least, most, state, THREADS)
    tl.store(state + COUNT, 0)
    tl.store(state + NAN, 0)


@triton.jit
def collect(x, slot, floor, row, state, candidates, CAPACITY: tl.constexpr, EACH: tl.constexpr):
    """Append what reaches the row's floor to its candidates, and NaN with it; EACH as `append`'s."""
    hit = (x >= floor) | (x != x)
    candidate = (slot.to(tl.int64) << 32) | x.to(tl.uint32, bitcast=True).to(tl.int64)
    candidates += row.to(tl.int64) * CAPACITY
    append(hit, candidate, candidates, state + row.to(tl.int64) * STATE + COUNT, CAPACITY, EACH)


@triton.jit
def floor_of(state, row):
    """The least score that is collected of a row."""
    return float_of(tl.load(state + row.to(tl.int64) * STATE))


@triton.jit
def _filter(
    scores, row_stride, stop, length, state, candidates,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    # Neighbours in the grid work on different rows: one row's counter is added to one by one.
    row = tl.program_id(0)
    end = _end(stop, length, row)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # Read before the threshold is known, and so (as the row's end is) past the first-level
    # cache, which may hold what was there before.
    at = scores + row.to(tl.int64) * row_stride + slot
    x = tl.load(at, mask=slot < end, other=float("-inf"), cache_modifier=".cg")
    wait_then_launch()
    collect(x, slot, floor_of(state, row), row, state, candidates, CAPACITY, EACH)


@triton.jit
def settled(state, k, CAPACITY: tl.constexpr):
    """Whether the k best of the row whose state this is are among its candidates."""
    floor, n = tl.load(state), tl.load(state + COUNT)
    return (n <= CAPACITY) & ((n >= k) | (floor == MINUS_INFINITY + 1))


@triton.jit
def _finish(
    scores, row_stride, stop, length, k, state, candidates, out, named,
    RANKED: tl.constexpr, CAPACITY: tl.constexpr, DIRECT: tl.constexpr, BLOCK: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    row = tl.program_id(0)
    scores += row.to(tl.int64) * row_stride
    out += row.to(tl.int64) * k
    state += row.to(tl.int64) * STATE
    end = _end(stop, length, row)
    if DIRECT:
        slot = tl.arange(0, CAPACITY)
        key = keys_of(tl.load(scores + slot, mask=slot < end, other=float("-inf")))
        beyond = length
        if named is not None:
            names = named + row.to(tl.int64) * length + slot
            slot = tl.load(names, mask=slot < end, other=0).to(tl.int32)
            beyond = MOST_SLOTS
        n = tl.sum((key > LOWEST).to(tl.int32))
        low = tl.full([], LOWEST + 1, tl.int32)
        written = _pick(slot, key, low, n, k, beyond, out, state, RANKED, THREADS)
    else:
        floor, n = tl.load(state), tl.load(state + COUNT)
        candidates += row.to(tl.int64) * CAPACITY
        half = tl.load(
            candidates + tl.arange(0, CAPACITY // 2)
        )  # before it is known how many there are
        if not settled(state, k, CAPACITY):
            written = _search(scores, end, k, floor, n, out, RANKED, BLOCK)
        elif n <= CAPACITY // 2:  # as most often: half the work
            written = _among(half, floor, n, k, length, out, state, RANKED, CAPACITY // 2, THREADS)
        else:
            all = tl.load(candidates + tl.arange(0, CAPACITY))
            written = _among(all, floor, n, k, length, out, state, RANKED, CAPACITY, THREADS)
    tl.store(state + NAN, (written < 0).to(tl.int32))
    for left in range(tl.maximum(written, 0), k, BLOCK):
        unused = left + tl.arange(0, BLOCK)
        tl.store(out + unused, UNRANKED if RANKED else -1, mask=unused < k)


@triton.jit
def _among(
    candidate, floor, n, k, length, out, state,
    RANKED: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Write the k best of n candidates; how many that was, or -1 for a row that holds NaN."""
    key = keys_of(candidate.to(tl.int32).to(tl.float32, bitcast=True))
    key = tl.where(tl.arange(0, SIZE) < n, key, LOWEST)
    slot = (candidate >> 32).to(tl.int32)
    return _pick(slot, key, floor, n, k, length, out, state, RANKED, THREADS)


@triton.jit
def _pick(slot, key, low, n, k, length, out, state, RANKED: tl.constexpr, THREADS: tl.constexpr):
    """Write the k best of the keys, n of which reach `low`; how many, or -1 where one is NaN's."""
    high, written = tl.max(key), -1
    if high < NOT_A_NUMBER:
        written = tl.minimum(n, k)
        high = tl.maximum(high, low)
        keep_best(key, slot, low, high, n, k, length, out, state + WRITTEN, RANKED, THREADS)
    return written


@triton.jit
def _shown(slot, key, RANKED: tl.constexpr):
    """What is written of a slot that was chosen: with its rank above it, where that is wanted."""
    shown = slot.to(tl.int64)
    if RANKED:
        shown |= (~key).to(tl.int64) << 32
    return shown


@triton.jit
def _reaching(scores, end, bound, BLOCK: tl.constexpr):
    """How many keys of a row reach the bound."""
    total = 0
    for first in range(0, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        x = tl.load(scores + slot, mask=slot < end, other=float("-inf"))
        total += tl.sum((keys_of(x) >= bound).to(tl.int32))
    return total


@triton.jit
def _search(scores, end, k, floor, n, out, RANKED: tl.constexpr, BLOCK: tl.constexpr):
    """As `_pick`, in a whole row, n of whose keys reach the floor; -1 for a row that holds NaN.

    Ties are written in the order of slots.
    """
    broken = 0
    for first in range(0, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        x = tl.load(scores + slot, mask=slot < end, other=float("-inf"))
        broken += tl.sum((x != x).to(tl.int32))
    written, tied = 0, 0
    if broken > 0:
        written = -1
    else:
        if n < k:
            low, high = MINUS_INFINITY + 1, floor - 1
            if _reaching(scores, end, floor - 1, BLOCK) >= k:  # the k-th is one of many ties
                low = floor - 1
        else:
            low, high = floor, INFINITY
        while low < high:
            pivot = middle(low, high)
            reaching = _reaching(scores, end, pivot, BLOCK)
            if reaching >= k:
                low = pivot
                if reaching == k:
                    high = pivot
            else:
                high = pivot - 1
        ties = k - _reaching(scores, end, low + 1, BLOCK)
        for first in range(0, end, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            key = keys_of(tl.load(scores + slot, mask=slot < end, other=float("-inf")))
            equal = (key == low).to(tl.int32)
            chosen = (key > low) | ((equal > 0) & (tied + tl.cumsum(equal, 0) <= ties))
            at = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(out + at, _shown(slot, key, RANKED), mask=chosen)
            written += tl.sum(chosen.to(tl.int32))
            tied += tl.sum(equal)
    return written
