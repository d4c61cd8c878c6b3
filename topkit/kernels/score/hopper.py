"""Lightning's mxfp4 keys scored by a kernel in Gluon, which says itself when it waits for products.

Half a tile is unpacked while the other half is multiplied, and no thread waits for another one's memory. Programs go
through the keys side by side; the last eighth is left to programs of few tiles, which begin where others have ended.
For Hopper; 64 heads, 128 dimensions, and 128 keys or more. Scores are those of topkit.kernels.score.triton_impl, bit
for bit.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportOptionalOperand=false

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from topkit.kernels.backend import multiprocessors
from topkit.kernels.checks import MOST_BLOCKS
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.fp4_fields import (
    LOOKED_UP,
    LOWER,
    MOST,
    TWICE_LOWER,
    TWICE_UPPER,
    UPPER,
)
from topkit.kernels.score.layout import Config, Layout, Source
from topkit.kernels.score.triton_impl import seen, window

HEADS, DIM, ROWS = gl.constexpr(64), gl.constexpr(128), gl.constexpr(128)
LAYOUT = Layout("mxfp4", DIM.value, HEADS.value, "sum", gated=True)
ROOM = gl.constexpr(LAYOUT.room)
# Five programs fit into the registers of a multiprocessor; of a million keys each takes a hundred tiles.
CONFIG = Config(ROWS.value, 128, 4, 1, None, 5)
# Of the tiles, the share that is left to later programs, and how many times as many these are as the first.
LEFT, LATER = 1 / 8, 2
# Triton 3.7 has another name for it.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier

# A tile's row is bits w w t h g g g: warp, half tile, half of a product's 16 rows, and a group of four lanes q q.
# Each lane reads 16 bytes, all of one block, of the rows of its group.
WORDS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [8, 0]], [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]], [], [64, 16],
    )
)  # fmt: skip
BYTES = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [8, 0]], [[0, 16], [0, 32], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]], [], [64, 64],
    )
)  # fmt: skip
BLOCKS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 4]
    )
)
# The row that a lane reads the scales of, and writes the score of: w w q q g g g.
OWN = gl.constexpr(
    gl.DistributedLinearLayout([], [[8], [16], [1], [2], [4]], [[32], [64]], [], [128])
)
FIRST = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEADS.value, 32]))
FIRST_KEYS = gl.constexpr(gl.DotOperandLayout(0, FIRST.value, 4))
SECOND = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8]))
SECOND_HITS = gl.constexpr(gl.DotOperandLayout(0, SECOND.value, 2))
SECOND_UNITS = gl.constexpr(gl.DotOperandLayout(1, SECOND.value, 2))
COLUMNS = gl.constexpr(gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0]))

# The same of words, each of which is given four times, as its outputs are bytes.
OF_WORDS = gl.constexpr(LOOKED_UP.value.replace("$7", "$10").replace("$3", "$6"))
# Both halves of a word: the largest of its bytes.
LARGEST = gl.constexpr("""{
    .reg .b32 a, b;
    prmt.b32 a, $1, 0, 0x4240;
    prmt.b32 b, $1, 0, 0x4341;
    max.u16x2 a, a, b;
    prmt.b32 b, a, 0, 0x1032;
    max.u16x2 $0, a, b;
}""")
NAN = gl.constexpr(0x00FF00FF)
# What each of four lanes has.
OF_FOUR = gl.constexpr(
    "".join(f"shfl.sync.idx.b32 ${lane}, $4, {lane}, 0x1c1f, 0xffffffff;" for lane in range(4))
)
OF_FIRST = gl.constexpr("shfl.sync.idx.b32 $0, $1, 0, 0x1c1f, 0xffffffff;")
BYTE = gl.constexpr("prmt.b32 $0, $1, 0, $2;")


@gluon.jit
def half_of(codes, row, HALF: gl.constexpr):
    """Words [64, 16] of one half of the tile that begins at a row."""
    codes = codes.to(gl.pointer_type(gl.int32)) + row.to(gl.int64) * 16
    m = gl.arange(0, 64, gl.SliceLayout(1, WORDS))
    word = gl.arange(0, 16, gl.SliceLayout(0, WORDS))
    at = (m // 16 * 32 + m % 16)[:, None] * 16 + word[None, :]
    return gl.load(codes + HALF * 256 + at)


@gluon.jit
def below_largest(word):
    """The largest of a row's four scales, twice, and how far each block is below it, of the rows that four lanes have."""
    largest = gl.inline_asm_elementwise(
        LARGEST, "=r,r", [word], dtype=gl.int32, is_pure=True, pack=1
    )
    below = largest * 0x0101 - word
    return largest, gl.inline_asm_elementwise(
        OF_FOUR, "=&r,=&r,=&r,=&r,r", [below],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def operands(x, below0, below1):
    """Half a tile's words [64, 16] as operands [64, 128], in the order of fp4_fields.side_by_side."""
    below = gl.reshape(gl.join(below0, below1), [4, 4, 8, 2])  # w q g h
    below = gl.reshape(gl.permute(below, [0, 3, 2, 1]), [64, 4])
    below = gl.convert_layout(below, BLOCKS, assert_trivial=True)
    byte = 0x4440 + gl.arange(0, 4, gl.SliceLayout(0, BLOCKS))
    byte = gl.expand_dims(byte, 0).broadcast_to([64, 4])
    below = gl.inline_asm_elementwise(
        BYTE, "=r,r,r", [below, byte], dtype=gl.int32, is_pure=True, pack=1
    )
    below = gl.minimum(below, ROOM + MOST)
    lower = of_bytes(LOWER + ROOM * TWICE_LOWER - below * TWICE_LOWER)
    upper = of_bytes(UPPER + ROOM * TWICE_UPPER - below * TWICE_UPPER)
    low, high = gl.inline_asm_elementwise(
        OF_WORDS, "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r", [of_bytes(x), lower, upper],
        dtype=(gl.int8, gl.int8), is_pure=True, pack=4,
    )  # fmt: skip
    y = gl.reshape(gl.join(low, high), [64, 4, 4, 4, 2])
    y = gl.reshape(gl.permute(y, [0, 4, 2, 1, 3]), [64, DIM])
    return gl.convert_layout(y, FIRST_KEYS, assert_trivial=True).to(gl.float8e5, bitcast=True)


@gluon.jit
def of_bytes(x):
    """What words or blocks have [64, N], of each of their bytes [64, 64]."""
    x = gl.reshape(x, [64, x.shape[1], 1]).broadcast_to([64, x.shape[1], 64 // x.shape[1]])
    return gl.convert_layout(gl.reshape(x, [64, 64]), BYTES, assert_trivial=True)


@gluon.jit
def multiply(x, columns):
    nothing = gl.zeros([64, HEADS], gl.float16, FIRST)
    return hopper.warpgroup_mma(x, columns, nothing, use_acc=False, is_async=True)


@gluon.jit
def sums(products, units):
    """Twice the rows' sums of what is positive, times units: [64, 4], all lanes of a group alike."""
    hits = gl.convert_layout(products + gl.abs(products), SECOND_HITS, assert_trivial=True)
    y = hopper.mma_v2(hits, units, gl.zeros([64, 8], gl.float32, SECOND))
    y = gl.sum(gl.reshape(y, [64, 4, 2]), 2)
    return gl.inline_asm_elementwise(OF_FIRST, "=r,r", [y], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def own_rows(y0, y1):
    """Of both halves' sums [64, 4], each lane's own row's [128]."""
    lane = gl.arange(0, 4, gl.SliceLayout(0, y0.type.layout))
    y = gl.where((lane < 2)[None, :], y0, y1)
    y0, y1 = gl.split(gl.permute(gl.reshape(y, [4, 2, 8, 4]), [0, 3, 2, 1]))  # w q g
    lane = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, y0.type.layout)))
    y = gl.where((lane % 2 == 0)[None, :, None], y0, y1)
    return gl.convert_layout(gl.reshape(y, [ROWS]), OWN, assert_trivial=True)


@gluon.jit
def prepared(columns, units):
    """A query's columns in shared memory, its units as two columns of float16 beside zeros, and what they share."""
    head = gl.arange(0, HEADS, gl.SliceLayout(1, COLUMNS))
    place = gl.arange(0, DIM, gl.SliceLayout(0, COLUMNS))
    at = columns + head[:, None] * DIM + place[None, :]
    held = gl.allocate_shared_memory(gl.float8e5, [HEADS, DIM], gl.NVMMASharedLayout(128, 8, 2))
    held.store(gl.load(at, cache_modifier=".cg"))
    head = gl.arange(0, HEADS, gl.SliceLayout(1, SECOND_UNITS))
    column = gl.arange(0, 8, gl.SliceLayout(0, SECOND_UNITS))[None, :]
    unit = gl.load(units + head[:, None] + 0 * column, cache_modifier=".cg")
    leading = unit.to(gl.float16)
    trailing = (unit - leading.to(gl.float32)).to(gl.float16)
    digits = gl.where(column == 0, leading, gl.where(column == 1, trailing, 0.0))
    shared = gl.load(units + HEADS, cache_modifier=".cg")
    hopper.fence_async_shared()
    barrier()
    return held.permute((1, 0)), digits, shared


# Tiles change with the length; a kernel for each would be compiled amid decoding.
@gluon.jit(do_not_specialize=["tiles", "left"])
def _score_tiles(source, start, stop, out, by, length, rows, tiles, left):
    columns, columns_by, codes, codes_by, words, words_by, units, units_by, _, _ = source
    turn = gl.program_id(1) // rows
    batch, query = (gl.program_id(1) % rows).to(gl.int64), gl.program_id(2).to(gl.int64)
    columns += batch * columns_by[0] + query * columns_by[2]
    units += batch * units_by[0] + query * units_by[2]
    codes += batch * codes_by[0]
    words += batch * words_by[0]
    out += batch * by[0] + query * by[2]
    begin, step, beyond = gl.program_id(0), gl.num_programs(0), tiles - left
    if turn > 0:
        begin += beyond + (turn - 1) * step
        step *= gl.num_programs(1) // rows - 1
        beyond = tiles
    own = gl.arange(0, ROWS, OWN)
    # The last tile ends with the keys, and scores some of the one before again.
    last = length - ROWS
    row = gl.minimum(begin * ROWS, last)
    # Keys are on their way while queries are made ready.
    x0, x1 = half_of(codes, row, 0), half_of(codes, row, 1)
    word = gl.load(words + row + own)
    wait_then_launch()
    first, end = seen(start, stop, batch, query, length)
    columns, digits, shared = prepared(columns, units)
    for tile in range(begin, beyond, step):
        following = gl.minimum((tile + step) * ROWS, last)
        largest, below = below_largest(word)
        word = gl.load(words + following + own)
        x = operands(x0, below[0], below[1])
        x0 = half_of(codes, following, 0)
        products0 = multiply(x, columns)
        x = operands(x1, below[2], below[3])
        x1 = half_of(codes, following, 1)
        products1 = multiply(x, columns)
        y0 = sums(hopper.warpgroup_mma_wait(1, [products0]), digits)
        y1 = sums(hopper.warpgroup_mma_wait(0, [products1]), digits)
        scale = gl.where(largest == NAN, 0x7FC00000, largest << 23).to(gl.float32, bitcast=True)
        scores = own_rows(y0, y1) * (scale * shared)
        slot = row + own
        if start is not None or stop is not None:
            visible = (slot >= first) & (slot < end)
            scores = gl.where(visible, scores, float("-inf"))
        gl.store(out + slot, scores)
        row = following


def takes(source: Source, layout: Layout) -> bool:
    """Whether keys and heads are those that the kernel is for."""
    return layout == LAYOUT and source.codes.shape[2] >= ROWS.value


def score(source: Source, start: Tensor | None, stop: Tensor | None) -> Tensor:
    """As topkit.kernels.score.triton_impl.score_codes."""
    codes, count = source.codes, source.queries.shape[2]
    rows, _, length, _ = codes.shape
    out = codes.new_empty(rows, 1, count, length, dtype=torch.float32)
    if out.numel() == 0:
        return out
    tiles = triton.cdiv(length, ROWS.value)
    programs = triton.cdiv(tiles, CONFIG.share(tiles, rows * count, multiprocessors(codes.device)))
    left = int(tiles * LEFT) // (programs * LATER) * programs * LATER
    if rows * (1 + LATER) > MOST_BLOCKS:
        left = 0
    turns = 1 + LATER if left else 1
    with torch.cuda.device_of(codes):  # Triton launches on the current device
        _score_tiles[(programs, rows * turns, count)](
            source.packed(), *window(start, stop), out, out.stride(), length, rows, tiles, left,
            num_warps=CONFIG.warps, launch_pdl=True,
        )  # fmt: skip
    return out
