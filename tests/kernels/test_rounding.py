"""Norms of many keys take the memory of a block."""

from multiprocessing import get_context
from pathlib import Path

import torch

from topkit.kernels.rounding import norms


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _growth() -> int:
    """Bytes at the peak beyond the keys', in a process of its own: a peak cannot be reset elsewhere."""
    keys = torch.empty(1, 8, 1 << 17, 64, dtype=torch.bfloat16).normal_()
    norms(keys[:, :, :64])
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    norms(keys)
    return _resident("VmHWM") - before


def test_what_is_kept_of_a_block_leaves_its_memory_to_the_next():
    with get_context("spawn").Pool(1) as pool:
        growth = pool.apply(_growth)
    assert growth < 64 << 20  # the keys in float32 are 256 MiB
