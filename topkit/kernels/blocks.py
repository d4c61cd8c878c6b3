"""Work on a CPU in blocks that its caches hold: what one operation writes, the next reads from there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Elements of a block for each thread: in float32 what the second-level cache of its core holds, and an
# operation on them is still long beside the start of threads.
BLOCK = 1 << 19


def blocks(count: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` things of `each` elements, a block at a time; all at once on a GPU."""
    room = BLOCK * torch.get_num_threads()
    width = max(1, room // max(1, each)) if device.type == "cpu" else max(1, count)
    for first in range(0, count, width):
        yield slice(first, min(first + width, count))
