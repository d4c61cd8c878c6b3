"""Fields of fp4 as operands of a product, in registers; scales of blocks are put into them.

mxfp4: an e2m1 is looked up among the eight e5m2 numbers that it may be in its block, of which each is the e2m1
times a power of two: that of its block over that of the key's largest block, by 2**13, or by 2 for lightning, whose
products are float16. One of less than 2**-13 is taken for that. nvfp4: its e5m2 becomes fp16 and is multiplied by its
block's scale, read 2**-8 times as large; a product of both has 6 bits, and is exact.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.backend import interpreted

PLAIN = tl.constexpr(interpreted())  # the interpreter has no inline assembly
# e5m2 of 0, 0.5, 1, 1.5 and of 2, 3, 4, 6, and what doubles them: an exponent ends in bit 2; zero stays.
LOWER, UPPER = tl.constexpr(0x3E3C3800), tl.constexpr(0x46444240)
TWICE_LOWER, TWICE_UPPER = tl.constexpr(0x04040400), tl.constexpr(0x04040404)
# Doublings of a block, in either direction: e5m2 has no more.
MOST = tl.constexpr(13)
# Of bytes a, their magnitudes looked up nibble by nibble, then put in order, and given signs.
LOOKED_UP = tl.constexpr("""{
    .reg .b32 a, b, c;
    and.b32 a, $2, 0x77777777;
    shr.u32 b, a, 16;
    prmt.b32 a, $3, $7, a;
    prmt.b32 b, $3, $7, b;
    shl.b32 c, $2, 4;
    prmt.b32 $0, a, b, 0x6420;
    prmt.b32 $1, a, b, 0x7531;
    lop3.b32 $0, $0, c, 0x80808080, 0xF8;
    lop3.b32 $1, $1, $2, 0x80808080, 0xF8;
}""")
# The same in one table for all, so that bytes need not be neighbours.
LOOKED_UP_ALIKE = tl.constexpr(
    LOOKED_UP.value.replace("$3", f"{LOWER.value:#x}").replace("$7", f"{UPPER.value:#x}")
)


@triton.jit
def scales_of(words, row, LAYOUT: tl.constexpr):
    """The bits of the scales of rows [R]: [R, BLOCKS]."""
    at = words.to(tl.pointer_type(tl.uint8)) + row[:, None] * LAYOUT.blocks
    return tl.load(at + tl.arange(0, LAYOUT.blocks)[None, :])


@triton.jit
def fields(x, bits, LAYOUT: tl.constexpr):
    """Operands of keys' bytes [R, W], those of low halves and of high ones, and a scale of each key [R, 1].

    bits: of the scales of a key's blocks [R, BLOCKS]. Operands of nvfp4 hold them, and its scale means nothing.
    """
    bits = bits.to(tl.int32)
    if LAYOUT.dtype == "mxfp4":
        largest = tl.max(bits, 1)[:, None]
        doublings = tl.maximum(bits - largest + LAYOUT.room, -MOST)
        lower = LOWER + doublings * TWICE_LOWER
        upper = UPPER + doublings * TWICE_UPPER
        low, high = e2m1(x, _of_bytes(lower, LAYOUT), _of_bytes(upper, LAYOUT))
        if not LAYOUT.gated:
            low, high = low.to(tl.float16), high.to(tl.float16)
        largest = tl.where(largest == 255, 0x7FC00000, largest << 23)
        scale = largest.to(tl.float32, bitcast=True)
    else:
        low, high = e2m1(x, None, None)
        own = _of_bytes(e4m3(bits), LAYOUT)
        low, high = low.to(tl.float16) * own, high.to(tl.float16) * own
        scale = bits
    return (low, high), scale


@triton.jit
def _of_bytes(x, LAYOUT: tl.constexpr):
    """What blocks have [R, BLOCKS], of each of their bytes [R, W]."""
    EACH: tl.constexpr = LAYOUT.bytes // LAYOUT.blocks
    x = tl.broadcast_to(x[:, :, None], [x.shape[0], LAYOUT.blocks, EACH])
    return tl.reshape(x, [x.shape[0], LAYOUT.bytes])


@triton.jit
def e2m1(x, lower, upper):
    """e5m2 of the low and of the high halves of bytes, looked up in tables that four neighbours share, or None.

    Said to be impure, so that the compiler hands it four neighbours: what is pure, it has done in any order.
    """
    if PLAIN:
        if lower is None:
            lower, upper = LOWER, UPPER
        low = _looked_up(x.to(tl.int32) & 15, lower, upper)
        high = _looked_up((x.to(tl.int32) >> 4) & 15, lower, upper)
    elif lower is None:
        low, high = tl.inline_asm_elementwise(
            LOOKED_UP_ALIKE, "=&r,=&r,r", [x], dtype=(tl.int8, tl.int8), is_pure=False, pack=4
        )
    else:
        low, high = tl.inline_asm_elementwise(
            LOOKED_UP, "=&r,=&r,r,r,r,r,r,r,r,r,r", [x, lower, upper],
            dtype=(tl.int8, tl.int8), is_pure=False, pack=4,
        )  # fmt: skip
    return low.to(tl.float8e5, bitcast=True), high.to(tl.float8e5, bitcast=True)


@triton.jit
def _looked_up(field, lower, upper):
    magnitude = tl.where(field & 4 != 0, upper, lower) >> (8 * (field & 3))
    return ((magnitude & 0x7F) | ((field & 8) << 4)).to(tl.int8)


@triton.jit
def e4m3(bits):
    """float16 of 2**-8 times the numbers of float8_e4m3fn that bits are: all of them, NaN too."""
    magnitude = bits & 0x7F
    half = ((bits & 0x80) << 8) | tl.where(magnitude == 0x7F, 0x7E00, magnitude << 7)
    return half.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def side_by_side(operands, LAYOUT: tl.constexpr):
    """Both halves' operands [R, W] as one [R, 2 W], in the order (`place_of`) in which a thread that read 16 bytes
    of a key holds what a tensor core takes of it, so that nothing is moved."""
    low, high = operands
    ROWS: tl.constexpr = low.shape[0]
    WIDTH: tl.constexpr = low.shape[1]
    WORD: tl.constexpr = LAYOUT.neighbours
    x = tl.reshape(tl.join(low, high), [ROWS, WIDTH // 16, 16 // WORD, WORD, 2])
    return tl.reshape(tl.permute(x, 0, 4, 2, 1, 3), [ROWS, 2 * WIDTH])


@triton.jit
def place_of(byte, half, LAYOUT: tl.constexpr):
    """Where bytes' low (0) or high (1) halves stand in what `side_by_side` makes of a key."""
    WIDTH: tl.constexpr = LAYOUT.bytes
    WORD: tl.constexpr = LAYOUT.neighbours
    return half * WIDTH + (byte % 16 // WORD * (WIDTH // 16) + byte // 16) * WORD + byte % WORD


@triton.jit
def crossed(x):
    """Rows [R, W] in the order in which a tensor core's four warps take those that they have read."""
    ROWS: tl.constexpr = x.shape[0]
    WIDTH: tl.constexpr = x.shape[1]
    if ROWS % 64 == 0:
        x = tl.permute(tl.reshape(x, [ROWS // 64, 2, 4, 8, WIDTH]), 0, 2, 1, 3, 4)
        x = tl.reshape(x, [ROWS, WIDTH])
    return x


@triton.jit
def uncrossed(x):
    """What was found of `crossed` rows [R, N], in their own order."""
    ROWS: tl.constexpr = x.shape[0]
    WIDTH: tl.constexpr = x.shape[1]
    if ROWS % 64 == 0:
        x = tl.permute(tl.reshape(x, [ROWS // 64, 4, 2, 8, WIDTH]), 0, 2, 1, 3, 4)
        x = tl.reshape(x, [ROWS, WIDTH])
    return x
