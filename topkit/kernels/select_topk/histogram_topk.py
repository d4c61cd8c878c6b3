"""The best of the keys of one program, by histograms of them in shared memory.

A histogram counts the keys of an interval in 256 bins and goes on with the bin that holds the last one
wanted: mostly two are enough. The bins are in shared memory, to which Triton's programs have no access
of their own, and its sums over a program's threads take as long as a round while they tell a few
intervals apart: hence a search in PTX, which writes what it finds to memory and returns nothing, since a
result Triton may compute anew in another layout.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.select_topk.bisect_topk import reached_by
from topkit.kernels.select_topk.keys import INFINITY, LOWEST, MINUS_INFINITY
from topkit.kernels.warp_append import ALL, LAST, PLAIN, REACH, append, operands, ptx_of_append

BINS = 256
EACH_LANE = 8  # bins that a lane of a warp sums
TOP_BITS = 24  # an interval's bits minus those of a bin's number: 32 - 8


@triton.jit
def store_floor(key, least, most, place, THREADS: tl.constexpr):
    """Store a key that at least `least` of the keys reach, and at most `most` if ties allow it.

    It is one above the ties where they are too many, INFINITY at most, and the least of all keys where
    too few are above LOWEST. A power of two of keys, at least four for each thread.
    """
    peaks = tl.max(tl.reshape(key, [key.shape[0] // (4 * THREADS), THREADS, 4]), 2)
    peaks = tl.max(peaks, 0)
    low, high = tl.min(peaks), tl.max(peaks)
    # As many as there are peaks reach the lowest of them.
    low = tl.where(least <= THREADS, low, MINUS_INFINITY + 1)
    low = tl.minimum(tl.maximum(low, MINUS_INFINITY + 1), INFINITY)
    high = tl.maximum(high, low + 1)  # or nothing would be counted
    if PLAIN:
        floor, reaching = reached_by(key, low, high, least, most)
        floor = tl.minimum(floor, INFINITY) + (reaching > most).to(tl.int32)
        tl.store(place, tl.minimum(floor, INFINITY))
    else:
        each: tl.constexpr = key.shape[0] // THREADS
        tl.inline_asm_elementwise(
            _floor(each, THREADS, INFINITY), operands("rrrrrl", each),
            [key, low, high - low, least, most - least, place.to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=each,
        )  # fmt: skip


@triton.jit
def keep_best(
    key, slot, low, high, n, k, length, out, counter, RANKED: tl.constexpr, THREADS: tl.constexpr
):
    """Write the slots of the k best of n keys from `low` to `high`, int64, in no order; all if n < k.

    Other keys are LOWEST. Of the keys that tie for the last places the lowest slots are chosen. With
    RANKED a slot has its key, turned over, in the upper half. `counter` may be written to.
    """
    k = tl.minimum(n, k)
    if PLAIN:
        low, reaching = reached_by(key, low, high, k, k)
        chosen = key >= low
        if reaching > k:
            ties = k - tl.sum((key > low).to(tl.int32))
            place = tl.where(key == low, -1 - slot, LOWEST)
            last, _ = reached_by(place, -length, tl.full([], -1, tl.int32), ties, ties)
            chosen = (key > low) | (place >= last)
        shown = slot.to(tl.int64)
        if RANKED:
            shown |= (~key).to(tl.int64) << 32
        tl.store(counter, 0)
        append(chosen, shown, out, counter, 1 << 30, 0)
    else:
        each: tl.constexpr = key.shape[0] // THREADS
        tl.inline_asm_elementwise(
            _best(each, THREADS, RANKED), operands("rrrrrrrl", each),
            [key, slot, low, high - low, n, k, length, out.to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=each,
        )  # fmt: skip


@triton.constexpr_function
def _floor(each, threads, infinity):
    keys = [f"${each + i}" for i in range(each)]
    low, span, least, slack, place = (f"${n * each}" for n in range(2, 7))
    values = [f"value{i}" for i in range(each)]
    shifted = "\n".join(
        f"sub.u32 {value}, {key}, {low};"
        for value, key in zip(values, keys)  # noqa: B905
    )
    return f"""{{
    {_declared(each)}
    {shifted}
    mov.u32 base, 0;
    mov.u32 last, {span};
    mov.u32 many, {ALL};
    mov.u32 need, {least};
    mov.u32 slack, {slack};
    {_search(values, threads)}
    add.u32 base, base, {low};
    min.s32 base, base, {infinity};
    sub.u32 d, many, need;
    setp.gt.u32 p, d, slack;
    @p add.u32 base, base, 1;
    min.s32 base, base, {infinity};
    setp.eq.u32 p, tid, 0;
    @p st.global.b32 [{place}], base;
    mov.b32 $0, 0;
    }}"""


@triton.constexpr_function
def _best(each, threads, ranked):
    keys, slots = ([f"${n * each + i}" for i in range(each)] for n in (1, 2))
    low, span, n, k, length, out = (f"${n * each}" for n in range(3, 9))
    values, flags, shown = (
        [f"{name}{i}" for i in range(each)] for name in ("value", "flag", "shown")
    )
    every = [*zip(keys, slots, values, flags, shown)]  # noqa: B905
    shifted = "\n".join(f"sub.u32 {value}, {key}, {low};" for key, _, value, _, _ in every)
    flagged = "\n".join(
        f"""setp.le.u32 p, {value}, {span};
        setp.ge.and.u32 p, {value}, base, p;
        selp.u32 {flag}, 1, 0, p;"""
        for _, _, value, flag, _ in every
    )
    # Those that tie, the lowest slot highest.
    tied = "\n".join(
        f"""setp.eq.u32 p, {value}, base;
        sub.u32 d, {length}, {slot};
        selp.b32 {value}, d, {ALL}, p;"""
        for _, slot, value, _, _ in every
    )
    dropped = "\n".join(
        f"setp.lt.u32 p, {value}, base;\n@p mov.u32 {flag}, 0;" for _, _, value, flag, _ in every
    )
    paired = "\n".join(
        f"{f'not.b32 d, {key}' if ranked else 'mov.b32 d, 0'};\nmov.b64 {one}, {{{slot}, d}};"
        for key, slot, _, _, one in every
    )
    return f"""{{
    {_declared(each)}
    .reg .b32 flag<{each}>;
    .reg .b64 shown<{each}>;
    .shared .align 4 .b32 written;
    mov.u32 base, 0;
    mov.u32 last, {span};
    mov.u32 many, {n};
    mov.u32 need, {k};
    mov.u32 slack, 0;
    setp.eq.u32 p, tid, 0;
    @p st.shared.u32 [written], 0;
    bar.sync 0;
    {shifted}
    {_search(values, threads)}
    {flagged}
    setp.eq.u32 p, many, need;
    @p bra apart;
    {tied}
    mov.u32 base, 0;
    mov.u32 last, {length};
    {_search(values, threads)}
    {dropped}
    apart:
    {paired}
    {ptx_of_append(flags, shown, out, "shared.add.u32 at, [written]", 1 << 30)}
    mov.b32 $0, 0;
    }}"""


@triton.constexpr_function
def _declared(each):
    """PTX of what `_search` goes by."""
    return f"""
    .reg .pred p;
    .reg .b32 d, tid, lane, at, both, base, last, many, need, slack, value<{each}>;
    .shared .align 16 .b32 bins[{2 * BINS}];
    mov.u32 tid, %tid.x;
    mov.u32 lane, %laneid;
    mov.u32 at, bins;
    shl.b32 both, at, 1;
    add.u32 both, both, {4 * BINS};
    """


@triton.constexpr_function
def _search(values, threads):
    """PTX that narrows an interval of values until the lowest `need` fit.

    The interval goes from `base` to `last` above it and holds `many` values, of which the highest `need`
    are wanted, and up to `slack` more may come with them. It ends there, or where all its values tie.
    All warps do the same after their counts have met. Rounds take turns in two sets of bins, so that
    none is cleared while it is read.
    """
    cleared = "\n".join(
        f"setp.lt.u32 p, tid, {BINS - first};\n@p st.shared.u32 [d + {4 * first}], 0;"
        for first in range(0, BINS, threads)
    )
    counted = "\n".join(
        f"""sub.u32 d, {value}, base;
        setp.le.u32 p, d, last;
        shr.u32 d, d, shift;
        mad.lo.u32 d, d, 4, at;
        @p red.shared.add.u32 [d], 1;"""
        for value in values
    )
    summed = "\n".join(f"add.u32 s{b}, c{b}, s{b + 1};" for b in range(EACH_LANE - 2, -1, -1))
    scan = "\n".join(
        f"shfl.sync.down.b32 more|p, sum, {lanes}, {LAST}, {ALL};\n@p add.u32 sum, sum, more;"
        for lanes in REACH
    )
    chosen = "\n".join(
        f"""setp.ge.u32 p, s{b}, left;
        @p mov.u32 bin, {b};
        @p mov.u32 many, c{b};
        @p sub.u32 over, s{b}, c{b};"""
        for b in range(EACH_LANE)
    )
    return f"""{{
    .reg .pred none;
    .reg .b32 shift, sum, more, above, who, left, bin, over, c<{EACH_LANE}>, s<{EACH_LANE}>;
    search:
    sub.u32 d, many, need;
    setp.le.u32 p, d, slack;
    @p bra found;
    setp.eq.u32 p, last, 0;
    @p bra found;
    clz.b32 shift, last;
    sub.s32 shift, {TOP_BITS}, shift;
    max.s32 shift, shift, 0;
    shl.b32 d, tid, 2;
    add.u32 d, d, at;
    {cleared}
    bar.sync 0;
    {counted}
    bar.sync 0;
    shl.b32 d, lane, 5;
    add.u32 d, d, at;
    ld.shared.v4.u32 {{c0, c1, c2, c3}}, [d];
    ld.shared.v4.u32 {{c4, c5, c6, c7}}, [d + 16];
    mov.u32 s7, c7;
    {summed}
    mov.u32 sum, s0;
    {scan}
    sub.u32 above, sum, s0;
    setp.lt.u32 p, above, need;
    setp.ge.and.u32 p, sum, need, p;
    vote.sync.ballot.b32 who, p, {ALL};
    setp.eq.u32 none, who, 0;
    @none mov.u32 many, need;
    @none bra found;
    bfind.u32 who, who;
    sub.u32 left, need, above;
    mov.u32 bin, 0;
    mov.u32 over, 0;
    {chosen}
    sub.u32 left, left, over;
    mad.lo.u32 bin, lane, {EACH_LANE}, bin;
    shfl.sync.idx.b32 bin, bin, who, {LAST}, {ALL};
    shfl.sync.idx.b32 many, many, who, {LAST}, {ALL};
    shfl.sync.idx.b32 need, left, who, {LAST}, {ALL};
    shl.b32 d, bin, shift;
    add.u32 base, base, d;
    sub.u32 last, last, d;
    mov.u32 d, 1;
    shl.b32 d, d, shift;
    sub.u32 d, d, 1;
    min.u32 last, last, d;
    sub.u32 at, both, at;
    bra search;
    found:
    }}"""
