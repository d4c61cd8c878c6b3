"""tools/against.py runs two checkouts in turns; here one against itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from topkit.experiments.bench.rows import read_rows

ROOT = Path(__file__).parents[2]
TOOL = (sys.executable, str(ROOT / "tools" / "against.py"))


@pytest.mark.slow
def test_a_checkout_against_itself(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = (str(ROOT), "encode int8", "decode sign()", "--tiny", "--turns", "2", "--out", str(out))
    done = subprocess.run([*TOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = read_rows(out)
    assert [row["bench"] for row in rows] == ["encode", "decode"]
    for row in rows:
        assert row["repeats"] == "2" and row["unit"] == "s" and row["against"]
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        assert row["what"] in done.stdout


def test_a_folder_without_topkit_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([*TOOL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is no checkout of topkit" in done.stderr
    done = subprocess.run([*TOOL, str(ROOT), "gues"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no case begins with gues" in done.stderr
