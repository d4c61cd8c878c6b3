"""The tidy table of cells, and the line that a run is cited by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

import topkit
from topkit.errors import InputError
from topkit.experiments.study.curves import load
from topkit.experiments.study.intervals import Intervals
from topkit.experiments.study.tidy import cells, tidy

RESULTS = Path(__file__).parents[2] / "results"
RUN = RESULTS / "fidelity-vs-accuracy"


def test_a_row_a_cell_of_the_reports_own_numbers():
    (curve,) = load(RUN)
    rows, of = tidy([curve], 0.1, "mine"), Intervals(curve, 0.1)
    assert len(rows) == len(curve.cells)
    for place, row in enumerate(rows):
        assert (row["accuracy"], row["low"], row["high"]) == tuple(of.accuracy[place])
        assert (row["model"], row["haystacks"], row["questions"]) == ("mine", 128, 512)
        exact = of.to_exact(place)
        assert row["to_exact"] == (None if exact is None else exact.value)
        assert (row["verdict_to_dense"] or "") == of.verdict(place)
        assert row["mass"] == pytest.approx(curve.mean("mass")[place], nan_ok=True) or row["kind"] == "dense"  # fmt: skip
    json.dumps(rows, allow_nan=False)


def test_a_table_has_nulls_and_types():
    table = cells(RUN, k="16,2")
    assert set(table["k"].to_pylist()) == {None, "16", "2"}
    assert table.schema.field("haystacks").type == pa.int64()
    assert table.schema.field("recall").type == pa.float64()
    dense = table.slice(0, 1).to_pylist()[0]
    assert (dense["kind"], dense["indexer"], dense["recall"], dense["to_dense"]) == (
        *("dense", None, None, None),
    )
    both = topkit.cells(RESULTS / "carry-over")
    assert set(both["model"].to_pylist()) == {"reference", "smollm2"}
    for wrong in ([], RESULTS):
        with pytest.raises(InputError):
            cells(wrong)


def test_a_run_is_cited_in_a_line(tmp_path: Path):
    place = tmp_path / "a\nb"
    place.mkdir()
    shutil.copy(RUN / "run.json", place)
    line = topkit.cite(place)
    assert line.startswith("topkit 0.2.0, run 9be00d89a9b7, commit dc0e11ed5192-dirty, ")
    assert "\n" not in line and line.endswith("a b")
    assert topkit.cite(RESULTS / "carry-over").startswith("topkit 0.2.0, run 7abb7da891be and b3f589dda9ed, commit 6dceb16161ae and 57c3b3d9a41a, ")  # fmt: skip
    for wrong in (tmp_path, []):
        with pytest.raises(InputError, match="holds no run to cite"):
            topkit.cite(wrong)
