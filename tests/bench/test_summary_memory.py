"""The rows that are summarised are as many as are said, and both ways read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from topkit.experiments.bench import summary_memory
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.measure.measured import Measured
from topkit.experiments.runs.parts import paths_of


@pytest.mark.parametrize("name", summary_memory.KINDS)
def test_every_row_is_summarised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary_memory, "PART", 640)
    summary_memory.write(tmp_path, name, 1920)
    if name == "measure":
        measured = Measured("measure", paths_of(tmp_path / "fidelity"))
        counts = [row["rows"] for row in measured.summary()]
    else:
        haystacks, heads = condensed(tmp_path)
        counts = [rows or 0 for rows in haystacks["rows"].to_pylist()]
        assert sum(heads["rows"].to_pylist()) == 1920
    assert len(counts) == (20 if name == "measure" else 60)
    assert sum(counts) == 1920
