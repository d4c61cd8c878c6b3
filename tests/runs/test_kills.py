"""Runs killed at random moments and gone on with: tools/kills.py does it at length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[2] / "tools" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_handful_of_kills_leaves_the_rows_of_an_unbroken_run(jobs: int) -> None:
    words = ["--kills", "6", "--jobs", str(jobs), "--seed", str(int.from_bytes(os.urandom(2)))]
    command = [sys.executable, str(KILLS), *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{words}: {done.stdout[-300:]} {done.stderr[-2000:]}"
