"""Which slots a query sees, for kernels."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def seen(start, stop, batch, query, length):
    """The slots that a query sees: the first, and one past the last."""
    first, end = 0, length
    if start is not None:
        places, by = start
        first = tl.load(places + batch * by, cache_modifier=".cg")
        first = tl.minimum(first, length).to(tl.int32)
    if stop is not None:
        places, by = stop
        end = tl.load(places + batch * by[0] + query * by[1], cache_modifier=".cg")
        end = tl.minimum(end, length).to(tl.int32)
    return first, end


def window(start: Tensor | None, stop: Tensor | None) -> tuple[Any, Any]:
    """Start and stop as `seen` takes them: one row of stops serves all rows where there is but one."""
    begins = None if start is None else (start, start.stride(0))
    if stop is None:
        return begins, None
    return begins, (stop, (stop.stride(0) if stop.shape[0] > 1 else 0, stop.stride(1)))
