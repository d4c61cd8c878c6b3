"""tools/rounded.py: means that are committed take less room, and are the same to five digits."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import topkit
from topkit.experiments.evaluate.condensed import keep_condensed
from topkit.experiments.evaluate.haystack_means import HAYSTACK
from topkit.experiments.runs.run_file import describe
from two_tables import part


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    return importlib.import_module("rounded")


def whole(folder: Path, haystacks: tuple[int, ...]) -> Path:
    """A run's means beside its rows."""
    folder.mkdir()
    part(folder, "a", 1, haystacks)
    keep_condensed(folder)
    return folder


def kept(folder: Path, haystacks: tuple[int, ...]) -> Path:
    """A run's means, without its rows."""
    whole(folder, haystacks)
    for table in ("accuracy", "fidelity"):
        shutil.rmtree(folder / table)
    return folder


def test_a_run_rounded_is_the_run_to_five_digits(
    rounded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = kept(tmp_path / "run", (0, 3)), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["rounded.py", str(run), str(out)])
    rounded.main()
    assert topkit.verify(out).faults == ()
    before, after = (pq.read_table(p / "curve/haystacks/rows.parquet") for p in (run, out))
    assert after.schema.equals(before.schema) and after.num_rows == before.num_rows
    assert after.select(HAYSTACK).equals(before.select(HAYSTACK))
    for name in ("nll", "mass", "score"):
        assert after[name].is_null().equals(before[name].is_null())
        some, same = (table[name].drop_null().to_pylist() for table in (before, after))
        assert some and same == pytest.approx(some, rel=4e-6)


def test_what_is_missing_or_not_finite_stays_and_short_fractions_are_exact(
    rounded: Any,
) -> None:
    values = [1.0, 0.0, -0.75, 1 / 3, float("nan"), float("inf"), None, 1e-300]
    table = pa.table({"x": pa.array(values, pa.float64()), "n": list(range(8))})
    found = rounded.rounded(table)
    (third,) = found["x"].slice(3, 1).to_pylist()
    assert found["x"].slice(0, 3).to_pylist() == values[:3]
    assert third != 1 / 3 and abs(third * 3 - 1) < 4e-6
    assert np.isnan(found["x"][4].as_py()) and found["x"].slice(5, 2).to_pylist() == values[5:7]
    assert found["n"].equals(table["n"])


def test_what_a_study_found_of_its_models_is_kept_to_five_digits(
    rounded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    (run / "parts").mkdir(parents=True)
    describe(run, {"kind": "entropy"})
    found = {"arm": {"seed": 3}, "heads": [{"mass": [[1 / 3, 1e-9 / 7], [2.0, 123456.7]], "n": 8}]}
    (run / "parts" / "a.json").write_text(json.dumps(found))
    monkeypatch.setattr(sys, "argv", ["rounded.py", str(run), str(out)])
    rounded.main()
    kept = json.loads((out / "parts" / "a.json").read_text())
    mass = [[0.33333, 1.4286e-10], [2.0, 123460.0]]
    assert kept == {"arm": {"seed": 3}, "heads": [{"mass": mass, "n": 8}]}
    assert (out / "run.json").read_bytes() == (run / "run.json").read_bytes()


def test_a_run_with_rows_and_a_folder_that_is_there_are_refused(
    rounded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = kept(tmp_path / "run", (0,)), whole(tmp_path / "rows", (0,))
    (tmp_path / "out").mkdir()
    refused = "is no run that is kept by its means alone"
    for asked, out, said in (
        (run, "out", "is there already"),
        (rows, "new", refused),
        (tmp_path / "none", "new", refused),
    ):
        monkeypatch.setattr(sys, "argv", ["rounded.py", str(asked), str(tmp_path / out)])
        with pytest.raises(SystemExit, match=said):
            rounded.main()
    assert not (tmp_path / "new").exists()
