"""Appending what reaches a row's floor to that row's list, a tile of scores at a time."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.warp_append import operands

# The four threads that hold a row, for shuffles among them: up, and from one of them.
UP, FROM, ALL = "0x1c00", "0x1c1f", "0xffffffff"


@triton.jit
def append_rows(scores, floor, lists, came, CAPACITY: tl.constexpr, EACH: tl.constexpr):
    """Append the scores that reach their row's floor, and NaN, to the row's list, in no order: how many came so far.

    Shapes: scores [M, N], float32; floor [M]; lists [M], pointers to int32: a count, then CAPACITY scores. Those
    that find no room are counted, and left out. came: `nothing_came` before the first tile, then as returned;
    `count_rows` writes it where the lists have their counts.
    EACH is how many scores a thread holds of each of two rows, 8 apart, as the results of Hopper's products
    stand: the four threads of a row then count together, and no memory is waited for. With 0 each score is
    counted in memory by itself, wherever they stand.
    """
    if EACH == 0:
        hit = ~(scores < floor[:, None])
        counters = lists[:, None] + tl.zeros(scores.shape, tl.int32)
        at = tl.atomic_add(counters, 1, mask=hit, sem="relaxed")
        bits = scores.to(tl.int32, bitcast=True)
        tl.store(lists[:, None] + 1 + at, bits, mask=hit & (at < CAPACITY))
    else:
        upper, lower = _halves(scores)
        upper_floor, lower_floor = _halves(tl.broadcast_to(floor[:, None], scores.shape))
        upper_list, lower_list = _halves(tl.broadcast_to(lists.to(tl.int64)[:, None], scores.shape))
        # Nothing but this takes its results: what else does, Triton may compute anew in another layout. Of the same
        # number beside each score the compiler keeps the first, which alone is read.
        came = tl.inline_asm_elementwise(
            _append(EACH, CAPACITY), _operands(EACH),
            [upper, lower, upper_floor, lower_floor, upper_list, lower_list, came[0], came[1]],
            dtype=(tl.int32, tl.int32), is_pure=False, pack=EACH,
        )  # fmt: skip
    return came


@triton.jit
def nothing_came(M: tl.constexpr, N: tl.constexpr):
    """No scores of M rows so far: of rows 0 to 7 of every sixteen, and of rows 8 to 15, beside each score."""
    zero = tl.zeros([M // 16, 8, N], tl.int32)
    return zero, zero


@triton.jit
def count_rows(lists, came, N: tl.constexpr, EACH: tl.constexpr):
    """Write how many scores came of each row before its list."""
    if EACH > 0:
        upper, lower = _halves(tl.broadcast_to(lists.to(tl.int64)[:, None], [lists.shape[0], N]))
        tl.inline_asm_elementwise(
            _count(EACH), operands("llrr", EACH), [upper, lower, came[0], came[1]],
            dtype=tl.int32, is_pure=False, pack=EACH,
        )  # fmt: skip


@triton.jit
def _halves(x):
    """Rows 0 to 7 of every sixteen, and rows 8 to 15: [M / 16, 8, N] each."""
    sixteens = tl.reshape(x, [x.shape[0] // 16, 2, 8, x.shape[1]])
    return tl.split(tl.permute(sixteens, [0, 2, 3, 1]))


@triton.constexpr_function
def _count(each):
    """PTX that writes the counts of two rows: each of a row's threads has the same."""
    return f"st.global.b32 [${each}], ${3 * each};\nst.global.b32 [${2 * each}], ${4 * each};\nmov.b32 $0, 0;"


@triton.constexpr_function
def _operands(each):
    return operands(["=r", *"rrrrllrr"], each)


@triton.constexpr_function
def _append(each, capacity):
    """PTX that counts a thread's scores of both rows, takes places behind those of the threads before, and writes.

    The counts of both rows are halves of one register, of which four threads make a sum.
    """
    rows = (0, 1)
    values = [[f"${(2 + row) * each + i}" for i in range(each)] for row in rows]
    floors, lists, came = ([f"${(n + row) * each}" for row in rows] for n in (4, 6, 8))
    # NaN, too, is not below a floor.
    count = "\n".join(
        f"setp.geu.f32 p, {value}, {floors[row]};\n@p add.u32 mine{row}, mine{row}, 1;"
        for row in rows
        for value in values[row]
    )
    scan = "\n".join(
        f"shfl.sync.up.b32 more|p, sum, {lanes}, {UP}, {ALL};\n@p add.u32 sum, sum, more;"
        for lanes in (1, 2)
    )
    write = "\n".join(
        f"""add.u32 at, before{row}, {came[row]};
        add.u32 mine{row}, mine{row}, at;
        setp.le.u32 room, mine{row}, {capacity};
        mad.wide.u32 place, at, 4, {lists[row]};
        {_written(values[row], floors[row])}
        add.u32 all{row}, all{row}, {came[row]};"""
        for row in rows
    )
    tell = "\n".join(f"mov.b32 ${row * each + i}, all{row};" for row in rows for i in range(each))
    return f"""{{
    .reg .pred p, room;
    .reg .b32 mine<2>, before<2>, all<2>, sum, more, at;
    .reg .b64 place, step;
    mov.u32 mine0, 0;
    mov.u32 mine1, 0;
    {count}
    mad.lo.u32 at, mine1, 65536, mine0;
    mov.b32 sum, at;
    {scan}
    shfl.sync.idx.b32 more, sum, 3, {FROM}, {ALL};
    sub.u32 sum, sum, at;
    and.b32 before0, sum, 65535;
    shr.u32 before1, sum, 16;
    and.b32 all0, more, 65535;
    shr.u32 all1, more, 16;
    {write}
    {tell}
    }}"""


@triton.constexpr_function
def _written(values, floor):
    """PTX that writes what reaches the floor behind `place`, if there is room."""
    return "\n".join(
        f"""setp.geu.and.f32 p, {value}, {floor}, room;
        @p st.global.b32 [place + 4], {value};
        selp.b32 at, 4, 0, p;
        cvt.u64.u32 step, at;
        add.u64 place, place, step;"""
        for value in values
    )
