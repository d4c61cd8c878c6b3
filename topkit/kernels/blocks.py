"""Work on a CPU in blocks that its caches hold: what one operation writes, the next reads from there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Elements of a block. In float32, with what is made of them, they fit the caches of two cores; each
# operation is still long beside the start of its threads.
BLOCK = 1 << 19


def blocks(count: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` things of `each` elements, a block at a time; all at once on a GPU."""
    width = max(1, BLOCK // max(1, each)) if device.type == "cpu" else max(1, count)
    for first in range(0, count, width):
        yield slice(first, min(first + width, count))
