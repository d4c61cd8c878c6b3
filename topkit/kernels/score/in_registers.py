"""Scores of lightning's mxfp4 keys that threads read into registers, where no thread waits for another.

A thread reads what a tensor core takes of it, and a key's scales as one word, and stores what it has added up: nothing
passes through shared memory but the queries. Of a tile of fewer keys than there are threads the compiler takes each
scale to where it is wanted, rather than to one thread of its own; hence 64 keys, and many programs at a time.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.backend import interpreted
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.fp4_fields import (
    crossed,
    fields,
    scales_of,
    side_by_side,
    uncrossed,
)
from topkit.kernels.score.gated_sum import gated_sum
from topkit.kernels.score.queries import of_list
from topkit.kernels.score.window import seen

PLAIN = tl.constexpr(interpreted())  # the interpreter has no inline assembly


@triton.jit
def stored(at, scores):
    """Stores where scores are: the compiler would take them to other threads first. Four that have one store the same."""
    if PLAIN:
        tl.store(at, scores)
    else:
        tl.inline_asm_elementwise(
            "st.global.b32 [$1], $2; // dummy $0", "=r,l,r", [at.to(tl.int64), scores],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


# Tiles change with the length; a kernel for each would be compiled amid decoding.
@triton.jit(do_not_specialize=["tiles"])
def score_in_registers(
    source, start, stop, out, by, length, groups, tiles,
    LAYOUT: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As topkit.kernels.score.triton_impl's kernel, of ROWS keys or more."""
    wait_then_launch()
    batch, group, query = tl.program_id(1) // groups, tl.program_id(1) % groups, tl.program_id(2)
    first, end = seen(start, stop, batch, query, length)
    columns, columns_by, codes, codes_by, scales, scales_by, units, units_by, _, _ = source
    unit, shared, columns = of_list(
        columns, columns_by, units, units_by, batch, group, query, LAYOUT
    )
    batch, query = batch.to(tl.int64), query.to(tl.int64)
    codes += batch * codes_by[0]
    scales += batch * scales_by[0]
    out += batch * by[0] + query * by[2]
    row = tl.arange(0, ROWS)
    at = row[:, None] * LAYOUT.bytes + tl.arange(0, LAYOUT.bytes)[None, :]
    mine = tl.program_id(0) * tiles
    beyond = tl.minimum(mine + tiles, tl.cdiv(length, ROWS))
    for tile in tl.range(mine, beyond, num_stages=STAGES):
        # The last tile reaches back, so that all are whole.
        begin = tl.minimum(tile * ROWS, length - ROWS).to(tl.int64)
        x = tl.load(codes + begin * LAYOUT.bytes + at)
        x, scale = fields(x, scales_of(scales + begin, row, LAYOUT), LAYOUT)
        sums = gated_sum(crossed(side_by_side(x, LAYOUT)), columns[0], unit, shared, LAYOUT)
        scores = uncrossed(sums[:, None]) * scale
        if (start is not None) or (stop is not None):
            slot = begin + row[:, None]
            scores = tl.where((slot >= first) & (slot < end), scores, float("-inf"))
        stored(out + begin + row[:, None], scores)
