"""The k-th of the keys of one program, by binary search: what Triton's interpreter can do."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reached_by(key, low, high, least, most):
    """The greatest key, or one that at most `most` of the keys reach, that at least `least` of them do.

    And how many do. The search goes from `low` to `high`; where too few reach `low` it is `low`.
    """
    reaching = tl.sum((key >= low).to(tl.int32))
    while (low < high) & (reaching > most):
        pivot = middle(low, high)
        count = tl.sum((key >= pivot).to(tl.int32))
        if count >= least:
            low, reaching = pivot, count
        else:
            high = pivot - 1
    return low, reaching


@triton.jit
def middle(low, high):
    """Halfway, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)
