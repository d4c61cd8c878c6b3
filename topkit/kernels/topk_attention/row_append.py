"""Appending what reaches a row's floor to that row's list, a tile of scores at a time."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.warp_append import operands


@triton.jit
def append_rows(scores, floor, lists, CAPACITY: tl.constexpr, EACH: tl.constexpr):
    """Append the scores that reach their row's floor, and NaN, to the row's list, in no order.

    Shapes: scores [M, N], float32; floor [M]; lists [M], pointers to int32: how many came so far, then CAPACITY
    of them. Those that find no room are counted, and left out.
    EACH is how many scores a thread holds of each of two rows, 8 apart, as the results of Hopper's products
    stand: a thread then counts once for a row. With 0 it counts each score by itself, wherever they stand.
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
        # Its result is not used: what is, Triton may compute anew in another layout.
        tl.inline_asm_elementwise(
            _append(EACH, CAPACITY), operands("rrrrll", EACH),
            [upper, lower, upper_floor, lower_floor, upper_list, lower_list],
            dtype=tl.int32, is_pure=False, pack=EACH,
        )  # fmt: skip


@triton.jit
def _halves(x):
    """Rows 0 to 7 of every sixteen, and rows 8 to 15: [M / 16, 8, N] each."""
    sixteens = tl.reshape(x, [x.shape[0] // 16, 2, 8, x.shape[1]])
    return tl.split(tl.permute(sixteens, [0, 2, 3, 1]))


@triton.constexpr_function
def _append(each, capacity):
    """PTX that counts a thread's scores of both rows, takes places for them, and writes them.

    What is taken from all rows is taken before anything is written, so that it is waited for once.
    """
    rows = (0, 1)
    values = [[f"${(1 + row) * each + i}" for i in range(each)] for row in rows]
    floors = [f"${(3 + row) * each}" for row in rows]
    lists = [f"${(5 + row) * each}" for row in rows]
    # NaN, too, is not below a floor.
    count = "\n".join(
        f"setp.geu.f32 p, {value}, {floors[row]};\n@p add.u32 mine{row}, mine{row}, 1;"
        for row in rows
        for value in values[row]
    )
    take = "\n".join(
        f"""setp.ne.u32 p, mine{row}, 0;
        @p atom.relaxed.gpu.global.add.u32 at{row}, [{lists[row]}], mine{row};"""
        for row in rows
    )
    write = "\n".join(
        f"""add.u32 mine{row}, mine{row}, at{row};
        setp.le.u32 room, mine{row}, {capacity};
        mad.wide.u32 place, at{row}, 4, {lists[row]};
        {_written(values[row], floors[row])}"""
        for row in rows
    )
    return f"""{{
    .reg .pred p, room;
    .reg .b32 mine<2>, at<2>;
    .reg .b64 place;
    mov.u32 mine0, 0;
    mov.u32 mine1, 0;
    mov.u32 at0, 0;
    mov.u32 at1, 0;
    {count}
    {take}
    {write}
    mov.b32 $0, 0;
    }}"""


@triton.constexpr_function
def _written(values, floor):
    """PTX that writes what reaches the floor behind `place`, if there is room."""
    return "\n".join(
        f"""setp.geu.and.f32 p, {value}, {floor}, room;
        @p st.global.b32 [place + 4], {value};
        @p add.u64 place, place, 4;"""
        for value in values
    )
