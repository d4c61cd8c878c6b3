"""Memory that is freed is kept for what comes next, and given back at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from topkit.experiments.runs.heap import _glibc, freed_memory_kept

BYTES = 1 << 27
# Bytes that a process has of the system, after a large block was freed in there, and behind it.
PROGRAM = f"""
from pathlib import Path
import torch
from topkit.experiments.runs.heap import freed_memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
with freed_memory_kept():
    torch.ones({BYTES} // 4)
    within = resident()
print(within - before, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or _glibc() is None, reason="of glibc")
def test_what_is_freed_stays_until_the_end():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    within, behind = map(int, done.stdout.split())
    assert within >= BYTES
    assert behind < BYTES // 2


def test_what_is_raised_in_there_comes_out():
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        raise ZeroDivisionError
