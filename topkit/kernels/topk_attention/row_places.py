"""Which slots a row sees, and how many of them it keeps, as a caller gives them."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

# More than any row has of keys. Whole numbers of 64 bits are cut there, before they are taken for 32.
BEYOND = tl.constexpr(1 << 30)


@triton.jit
def first_seen(start, batch):
    """The first slot that a batch's queries see."""
    first = 0
    if start is not None:
        first = narrowed(tl.load(start + batch))
    return first


@triton.jit
def narrowed(number):
    """A count or a place in 32 bits: what is beyond all keys stays so, and below zero there is none."""
    return tl.maximum(tl.minimum(number, BEYOND), 0).to(tl.int32)
