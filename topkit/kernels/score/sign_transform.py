"""A linear transform of queries, after which signs need not be cut out of their words.

A word of four bytes, shifted left by s and read as four signed bytes, holds in its byte j the number

    F(n) = -128 B(n) + 64 B(n - 1) + 32 B(n - 2) + ... + B(n - 7),    n = 8 j + 7 - s,

of the word's bits B(0..31), zero below 0: the bit that is wanted, and others below it. All 32 of
them determine the bits, so that there are c(0..31) with sum c(n) F(n) = sum q(n) B(n): a product of
bytes that were shifted, and not masked, is one of signs. F(n) minus half of F(n - 1) leaves

    c(n) = c(n + 1) - c(n + 8) / 256 - (q(n) - q(n + 1) / 2) / 128,

solved from the top by sums. c is 2 to 3 times as large as q / 128 (16 times where all of q is alike),
so that of its digits a bit or two (four) are lost.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

PLANES = tl.constexpr(8)
BYTES = tl.constexpr(4)


@triton.jit
def transform(queries, by, HEADS: tl.constexpr, out, WIDTH: tl.constexpr):
    """Write what shifted words are multiplied by, for the sum of some heads' queries [8 WIDTH]."""
    n, word = tl.arange(0, PLANES * BYTES)[:, None], tl.arange(0, WIDTH // BYTES)[None, :]
    c = tl.zeros([PLANES * BYTES, WIDTH // BYTES], tl.float32)
    for byte in tl.static_range(BYTES - 1, -1, -1):  # c(n + 8 byte), from what is c(n + 8 byte + 8)
        r = _bit(queries, by, HEADS, n + PLANES * byte, word, WIDTH)
        r -= 0.5 * _bit(queries, by, HEADS, n + PLANES * byte + 1, word, WIDTH)
        c = tl.cumsum(-r / 128 - c / 256, 0, reverse=True)
    tl.store(out + _dim(n, word, WIDTH), c)


@triton.jit
def summed(queries, by, HEADS: tl.constexpr, dim, there):
    """Components of the sum of some heads' queries, zero where they are not wanted."""
    q = tl.load(queries + dim, mask=there, other=0.0).to(tl.float32)
    for head in tl.static_range(1, HEADS):
        q += tl.load(queries + head * by + dim, mask=there, other=0.0).to(tl.float32)
    return q


@triton.jit
def _dim(n, word, WIDTH: tl.constexpr):
    """The dimension whose sign is bit n of a word: topkit.kernels.codes packs plane by plane."""
    return n % PLANES * WIDTH + word * BYTES + n // PLANES


@triton.jit
def _bit(queries, by, HEADS: tl.constexpr, n, word, WIDTH: tl.constexpr):
    return summed(queries, by, HEADS, _dim(n, word, WIDTH), n < PLANES * BYTES)


@triton.jit
def all_set(dim, WIDTH: tl.constexpr):
    """-F for a dimension where all bits are set."""
    n = dim % WIDTH % BYTES * PLANES + dim // WIDTH
    return tl.exp2(tl.maximum(-1.0 * n + (PLANES - 1), 0.0))
