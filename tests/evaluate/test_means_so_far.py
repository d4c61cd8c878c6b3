"""tools/means_so_far.py keeps the means of a run that is still written to: of the parts that were entered by then."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

import topkit
from topkit.experiments.evaluate.condensed import condensed
from two_tables import part


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    return importlib.import_module("means_so_far")


def test_means_are_those_of_the_rows_and_are_replaced(tool: Any, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out" / "run"
    run.mkdir()
    part(run, "a", 1, (0, 3))
    tool.keep(run, out)
    assert topkit.verify(out).faults == () and not (out / "accuracy").exists()
    assert condensed(out)[0].to_pylist() == condensed(run)[0].to_pylist()
    part(run, "b", 2, (7,))
    tool.keep(run, out)
    assert condensed(out)[0].to_pylist() == condensed(run)[0].to_pylist()
    assert topkit.verify(run).faults == () and not list(tmp_path.glob(".means-*"))


def test_a_part_that_is_about_to_come_or_has_just_come_is_left_for_later(
    tool: Any, tmp_path: Path
) -> None:
    run, before, out = tmp_path / "run", tmp_path / "before", tmp_path / "out" / "run"
    run.mkdir()
    part(run, "a", 1, (0, 3))
    shutil.copytree(run, before)
    part(run, "b", 2, (7,))
    for path in (run / "accuracy").glob("b*.parquet"):  # entered, and not yet in its place
        path.unlink()
    for path in (run / "fidelity").glob("_manifest*"):  # in its place, after manifests were copied
        shutil.copy(before / "fidelity" / path.name, path)
    tool.keep(run, out)
    assert condensed(out)[0].to_pylist() == condensed(before)[0].to_pylist()
