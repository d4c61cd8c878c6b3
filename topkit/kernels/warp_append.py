"""Appending to a list in memory that several programs share: a warp counts once."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.backend import interpreted

PLAIN = tl.constexpr(interpreted())  # the interpreter has no inline assembly
# Lanes that a scan of a warp reaches back, the last of them, and all.
REACH, LAST, ALL = (1, 2, 4, 8, 16), 31, "0xffffffff"


@triton.jit
def append(wanted, value, items, counter, CAPACITY: tl.constexpr, EACH: tl.constexpr):
    """Append the values that are wanted, int64, to items, in no order, and count them at `counter`.

    Those that find no room are counted, and left out. EACH is how many elements each thread holds,
    where no two threads hold the same one: then a warp adds to the counter once, and not at all if
    it has nothing to append. With 0 it is added to for every element, whoever holds it.
    """
    if PLAIN or EACH == 0:
        zero = tl.zeros_like(value).to(tl.int32)
        at = tl.atomic_add(counter + zero, 1, mask=wanted, sem="relaxed")
        tl.store(items + at, value, mask=wanted & (at < CAPACITY))
    else:
        # Its result is not used: what is, Triton may compute anew in another layout.
        tl.inline_asm_elementwise(
            _append(EACH, CAPACITY), operands("rlll", EACH),
            [wanted.to(tl.int32), value, items.to(tl.int64), counter.to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=EACH,
        )  # fmt: skip


@triton.constexpr_function
def operands(kinds, each):
    """Constraints of PTX with a result that is not used, and arguments of these kinds, `each` of each."""
    return ",".join(kind for one in ["=r", *kinds] for kind in [one] * each)


@triton.constexpr_function
def _append(each, capacity):
    flags, values = ([f"${n * each + i}" for i in range(each)] for n in (1, 2))
    items, counter = f"${3 * each}", f"${4 * each}"
    return f"mov.b32 $0, 0;\n{ptx_of_append(flags, values, items, f'global.add.u32 at, [{counter}]', capacity)}"


@triton.constexpr_function
def ptx_of_append(flags, values, items, counted, capacity):
    """PTX that counts a thread's flags, sums them over its warp, takes places and writes the values.

    `counted` is an atomic operation's space, its result `at` and its address, all but what is added.
    """
    mine = "\n".join(f"add.u32 mine, mine, {flag};" for flag in flags)
    scan = "\n".join(
        f"shfl.sync.up.b32 more|p, sum, {lanes}, 0, {ALL};\n@p add.u32 sum, sum, more;"
        for lanes in REACH
    )
    write = "\n".join(
        f"""setp.ne.u32 p, {flag}, 0;
        setp.lt.and.u32 p, at, {capacity}, p;
        mad.wide.u32 place, at, 8, {items};
        @p st.global.b64 [place], {value};
        add.u32 at, at, {flag};"""
        for flag, value in zip(flags, values)  # noqa: B905 - not known to Triton's hasher
    )
    return f"""{{
    .reg .pred p;
    .reg .b32 mine, sum, more, lane, at;
    .reg .b64 place;
    mov.b32 mine, 0;
    {mine}
    setp.ne.u32 p, mine, 0;
    vote.sync.any.pred p, p, {ALL};
    @!p bra none;
    mov.b32 sum, mine;
    {scan}
    mov.u32 lane, %laneid;
    setp.eq.u32 p, lane, {LAST};
    @p atom.relaxed.gpu.{counted}, sum;
    shfl.sync.idx.b32 at, at, {LAST}, {LAST}, {ALL};
    sub.u32 sum, sum, mine;
    add.u32 at, at, sum;
    {write}
    none:
    }}"""
