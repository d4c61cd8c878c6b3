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
from triton.language.extra import cuda

from topkit.kernels.backend import interpreted, launches_early

# What `_ordered` makes of -inf and inf, and less than any.
MINUS_INFINITY = tl.constexpr(-2139095041)
INFINITY = tl.constexpr(0x7F800000)
LOWEST = tl.constexpr(-(2**31))
PLAIN = tl.constexpr(interpreted())  # the interpreter has no inline assembly
EARLY = tl.constexpr(launches_early())

# A row's state: the least key that is collected, how many were, whether one is NaN, how many slots are
# written. It stands in a cache line of its own: counters that share one are added to one by one.
STATE = tl.constexpr(32)
COUNT = tl.constexpr(1)
NAN = tl.constexpr(2)
WRITTEN = tl.constexpr(3)

# How far the rank of the threshold in the sample is kept from the k-th: standard deviations.
MARGIN = 5.0
# Rows that are short enough are looked at at once.
DIRECT = 1 << 13
# Elements that a program reads, and its warps, for each step.
FILTERED, FILTER_WARPS = 2048, 4
SEARCHED = 4096


@dataclass(frozen=True)
class Plan:
    """How rows of `length` are sampled, and how many candidates there is room for."""

    length: int
    k: int
    sparsity: int = 64  # elements of the row for one of the sample
    most: int = 1 << 13

    @property
    def direct(self) -> bool:
        return self.length <= max(DIRECT, _power_of_two(self.k))

    @property
    def sample(self) -> int:
        return min(max(_power_of_two(self.length // self.sparsity), 1 << 10), self.most)

    @property
    def capacity(self) -> int:
        if self.direct:
            return _power_of_two(self.length)
        share = self.length / self.sample
        low = self.k / share + MARGIN * math.sqrt(self.k / share) + 8
        high = low + max(4.0, low / 8)
        return max(_power_of_two(math.ceil((high + MARGIN * math.sqrt(high)) * share)), 1 << 11)


@dataclass(frozen=True)
class Work:
    """What the steps hand on: state [R, STATE] int32; found, place [R, capacity], the candidates."""

    state: Tensor
    found: Tensor
    place: Tensor

    @classmethod
    def of(cls, rows: int, plan: Plan, device: torch.device) -> Work:
        room = 1 if plan.direct else plan.capacity
        return cls(
            torch.empty(rows, STATE.value, dtype=torch.int32, device=device),
            torch.empty(rows, room, dtype=torch.float32, device=device),
            torch.empty(rows, room, dtype=torch.int32, device=device),
        )


def select_topk(
    scores: Tensor, k: int, stop: Tensor | None = None, best: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The slots of the k best of each row, in no order, and which rows hold NaN.

    Shapes: scores [R, N] float32, contiguous in N; stop [R], one past the last slot that counts;
    best [R, min(k, N)] float32, where the scores that were chosen are written, anything for -1 ->
    slots [R, min(k, N)] int64, -1 last; NaN [R] int32, and such rows are all -1.
    """
    rows, length = scores.shape
    plan = Plan(length, min(k, length))
    work = Work.of(rows, plan, scores.device)
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        if not plan.direct:
            threshold(scores, stop, plan, work, spread=True)
            _filter[(rows, triton.cdiv(length, FILTERED))](
                scores, scores.stride(0), stop, length, work.state, work.found, work.place,
                plan.capacity, FILTERED, num_warps=FILTER_WARPS, launch_pdl=EARLY.value,
            )  # fmt: skip
        return finish(scores, stop, plan, work, best)


def threshold(sampled: Tensor, stop: Tensor | None, plan: Plan, work: Work, spread: bool) -> None:
    """Set each row's threshold from a sample, and its counters to zero.

    `sampled` [R, sample] is one; with `spread` it is drawn from [R, N], an element from each stretch.
    """
    _threshold[(work.state.shape[0],)](
        sampled, sampled.stride(0), stop, plan.length, plan.k * plan.sample / plan.length, MARGIN,
        work.state, plan.sample, plan.capacity, spread, num_warps=_warps(plan.sample), launch_pdl=EARLY.value,
    )  # fmt: skip


def finish(
    scores: Tensor, stop: Tensor | None, plan: Plan, work: Work, best: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The exact k of each row [R, k], from its candidates, and which rows hold NaN [R].

    Scores [R, N] are read of rows alone that are short, or whose candidates do not hold the answer.
    """
    rows = work.state.shape[0]
    slots = torch.empty(rows, plan.k, dtype=torch.int64, device=scores.device)
    _finish[(rows,)](
        scores, scores.stride(0), stop, plan.length, plan.k, work.state, work.found, work.place,
        slots, best, plan.capacity, plan.direct, SEARCHED, num_warps=_warps(plan.capacity), launch_pdl=EARLY.value,
    )  # fmt: skip
    return slots, work.state[:, NAN.value]


def _warps(elements: int) -> int:
    """Of a program that holds so many elements: more wait longer for one another."""
    return 4 if elements <= 2048 else 8 if elements <= 8192 else 16


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


@triton.jit
def after_others():
    """Let the next kernel be launched already, and wait for the one before."""
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()


@triton.jit
def _ordered(x):
    """Integers that stand in the order of the floats; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _keys(x):
    """Scores in the order of integers, LOWEST for -inf, which may not be chosen."""
    key = _ordered(x)
    return tl.where(key > MINUS_INFINITY, key, LOWEST)


@triton.jit
def _float(key):
    """The float that stands at a place in the order."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _end(stop, length, row):
    """One past the last slot of a row that counts."""
    end = length
    if stop is not None:
        end = tl.minimum(tl.load(stop + row), length).to(tl.int32)
    return end


@triton.jit
def _middle(low, high):
    """Halfway, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def stretch(i, length, SAMPLE: tl.constexpr):
    """A place in each of SAMPLE stretches of a row, by a hash: no period of the row can follow it."""
    inside = ((((i * 0x45D9F3B) >> 7) & 0xFFFF) * (length // SAMPLE)) >> 16
    return ((i.to(tl.int64) * length) // SAMPLE).to(tl.int32) + inside


@triton.jit
def _threshold(
    sampled, row_stride, stop, length, share, margin, state,
    SAMPLE: tl.constexpr, CAPACITY: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    after_others()
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
    most = least + tl.maximum(least // 8, 4)
    floor, reaching = _reached_by(_keys(x), least, most)
    # Many ties are left to the last step, but for infinity's: nothing is above it.
    floor = tl.minimum(floor + (reaching > most).to(tl.int32), INFINITY)
    if end <= CAPACITY:  # there is room for all
        floor = MINUS_INFINITY + 1
    state += row * STATE
    tl.store(state, tl.maximum(floor, MINUS_INFINITY + 1))
    tl.store(state + COUNT, 0)
    tl.store(state + NAN, 0)


@triton.jit
def _reached_by(key, least, most):
    """A key that at least `least` of the keys reach, the greatest, or one that at most `most` do."""
    low, high = tl.min(tl.where(key > LOWEST, key, INFINITY)), tl.max(key)
    low = tl.minimum(low, high)
    reaching = tl.sum((key >= low).to(tl.int32))
    while low < high:
        upper = _middle(low, high)
        lower = _middle(low, upper)
        # Two counts in one sum: what costs is that the threads wait for one another.
        both = tl.sum((key >= lower).to(tl.uint32) + ((key >= upper).to(tl.uint32) << 16))
        by_lower, by_upper = (both & 0xFFFF).to(tl.int32), (both >> 16).to(tl.int32)
        if by_upper >= least:
            low, reaching = upper, by_upper
            if by_upper <= most:
                high = upper
        else:
            high = upper - 1
            if by_lower >= least:
                low, reaching = lower, by_lower
                if by_lower <= most:
                    high = lower
            else:
                high = lower - 1
    return low, reaching


@triton.constexpr_function
def _append(capacity):
    """PTX that appends (score $1, slot $2) to candidates at $4, $5 and counts them at $6.

    It does so for what is at least $3, or NaN. Threads of a warp without such an element pass by.
    """
    return f"""{{
    .reg .pred p; .reg .b32 at; .reg .b64 a, offset;
    mov.b32 $0, 0;
    setp.lt.f32 p, $1, $3;
    @p bra passed;
    atom.relaxed.gpu.global.add.u32 at, [$6], 1;
    setp.ge.u32 p, at, {capacity};
    @p bra passed;
    mul.wide.u32 offset, at, 4;
    add.s64 a, $4, offset;
    st.global.b32 [a], $1;
    add.s64 a, $5, offset;
    st.global.b32 [a], $2;
    passed:
    }}"""


@triton.jit
def collect(x, slot, floor, row, state, found, place, CAPACITY: tl.constexpr):
    """Append what reaches the row's floor to its candidates, and NaN with it."""
    found += row.to(tl.int64) * CAPACITY
    place += row.to(tl.int64) * CAPACITY
    hit = (x >= floor) | (x != x)
    at = tl.atomic_add(state + row * STATE + COUNT + slot * 0, 1, mask=hit, sem="relaxed")
    hit = hit & (at < CAPACITY)
    tl.store(found + at, x, mask=hit)
    tl.store(place + at, slot, mask=hit)


@triton.jit
def floor_of(state, row):
    """The least score that is collected of a row."""
    return _float(tl.load(state + row * STATE))


@triton.jit
def _filter(
    scores, row_stride, stop, length, state, found, place,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    after_others()
    # Neighbours in the grid work on different rows: one row's counter is added to one by one.
    row = tl.program_id(0)
    end = _end(stop, length, row)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(scores + row.to(tl.int64) * row_stride + slot, mask=slot < end, other=float("-inf"))
    floor = floor_of(state, row)
    if PLAIN:
        collect(x, slot, floor, row, state, found, place, CAPACITY)
    else:  # the same, with no exchange of a tile between threads
        tl.inline_asm_elementwise(
            _append(CAPACITY), "=r,f,r,f,l,l,l",
            [x, slot, floor, (found + row.to(tl.int64) * CAPACITY).to(tl.int64),
             (place + row.to(tl.int64) * CAPACITY).to(tl.int64), (state + row * STATE + COUNT).to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def settled(state, row, k, CAPACITY: tl.constexpr):
    """Whether the k best of a row are among its candidates."""
    floor, n = tl.load(state + row * STATE), tl.load(state + row * STATE + COUNT)
    return (n <= CAPACITY) & ((n >= k) | (floor == MINUS_INFINITY + 1))


@triton.jit
def _finish(
    scores, row_stride, stop, length, k, state, found, place, out, best,
    CAPACITY: tl.constexpr, DIRECT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    after_others()
    row = tl.program_id(0)
    scores += row.to(tl.int64) * row_stride
    out += row.to(tl.int64) * k
    if best is not None:
        best += row.to(tl.int64) * k
    end = _end(stop, length, row)
    slot = tl.arange(0, CAPACITY)
    written, broken = 0, 0
    if DIRECT:
        x = tl.load(scores + slot, mask=slot < end, other=float("-inf"))
        broken = tl.max((x != x).to(tl.int32))
        if broken == 0:
            written = _pick(slot, _keys(x), k, out, best, state + row * STATE + WRITTEN)
    elif settled(state, row, k, CAPACITY):
        n = tl.load(state + row * STATE + COUNT)
        at = row.to(tl.int64) * CAPACITY + slot
        x = tl.load(found + at, mask=slot < n, other=float("-inf"))
        slot = tl.load(place + at, mask=slot < n, other=0)
        broken = tl.max((x != x).to(tl.int32))
        if broken == 0:
            written = _pick(slot, _keys(x), k, out, best, state + row * STATE + WRITTEN)
    else:
        floor, n = tl.load(state + row * STATE), tl.load(state + row * STATE + COUNT)
        written = _search(scores, end, k, floor, n, out, best, BLOCK)
        broken = (written < 0).to(tl.int32)
    tl.store(state + row * STATE + NAN, broken)
    for left in range(tl.maximum(written, 0), k, BLOCK):
        unused = left + tl.arange(0, BLOCK)
        tl.store(out + unused, -1, mask=unused < k)


@triton.jit
def _pick(slot, key, k, out, best, counter):
    """Write the k best of the candidates, all of them where they are fewer; how many that was."""
    low, reaching = _reached_by(key, k, k)
    low = tl.maximum(low, LOWEST + 1)
    last = 0x7FFFFFFF
    if reaching > k:
        ties = k - tl.sum((key > low).to(tl.int32))
        first = 0
        while first < last:  # for the slot of the last of the lowest ties
            middle = first + (last - first) // 2
            if tl.sum(((key == low) & (slot <= middle)).to(tl.int32)) >= ties:
                last = middle
            else:
                first = middle + 1
    chosen = (key > low) | ((key == low) & (slot <= last))
    # Slots come in no order anyway, so that a counter does, and no running sum over the threads.
    tl.store(counter, 0)
    tl.debug_barrier()
    at = tl.atomic_add(counter + slot * 0, 1, mask=chosen, sem="relaxed")
    tl.store(out + at, slot.to(tl.int64), mask=chosen)
    if best is not None:
        tl.store(best + at, _float(key), mask=chosen)
    return tl.sum(chosen.to(tl.int32))


@triton.jit
def _reaching(scores, end, bound, BLOCK: tl.constexpr):
    """How many keys of a row reach the bound."""
    total = 0
    for first in range(0, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        x = tl.load(scores + slot, mask=slot < end, other=float("-inf"))
        total += tl.sum((_keys(x) >= bound).to(tl.int32))
    return total


@triton.jit
def _search(scores, end, k, floor, n, out, best, BLOCK: tl.constexpr):
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
            middle = _middle(low, high)
            reaching = _reaching(scores, end, middle, BLOCK)
            if reaching >= k:
                low = middle
                if reaching == k:
                    high = middle
            else:
                high = middle - 1
        ties = k - _reaching(scores, end, low + 1, BLOCK)
        for first in range(0, end, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            key = _keys(tl.load(scores + slot, mask=slot < end, other=float("-inf")))
            equal = (key == low).to(tl.int32)
            chosen = (key > low) | ((equal > 0) & (tied + tl.cumsum(equal, 0) <= ties))
            at = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(out + at, slot.to(tl.int64), mask=chosen)
            if best is not None:
                tl.store(best + at, _float(key), mask=chosen)
            written += tl.sum(chosen.to(tl.int32))
            tied += tl.sum(equal)
    return written
