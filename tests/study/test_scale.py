"""The study scale: models that are not there, k for half, reading heads and the law's constant, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isnan, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import topkit
from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.blocks import as_markdown
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.scale_report import NO_KEYS, Size, _with_heads, blocks, crossing
from topkit.experiments.study.study_file import read_study
from topkit.indexers import exact
from topkit.indexers.budget import parse_budgets

KS = (1, 2, 4, 8)


def curve(rates: list[float]) -> Curve:
    """Full attention right always; exact Top-k at KS at some rates, on four haystacks."""
    cells = (Cell(), *(Cell(exact(), k) for k in parse_budgets(KS)))
    every = np.repeat(np.array([[1.0], *([r] for r in rates)]), 4, axis=1)
    fidelity = {name: np.full_like(every, np.nan) for name in ("recall", "kept")}
    return Curve(
        "some", 512, "question", "score", cells, (0, 1, 2, 3), np.ones(4), every, every, {}, fidelity, 1.0, {}
    )  # fmt: skip


def test_k_for_half_lies_between_two_k_by_a_line_in_log_k() -> None:
    size = Size("a", 4_000_000, curve([0.0, 0.25, 0.75, 1.0]))
    assert size.half == pytest.approx(2**1.5) and size.dense == 1
    assert isnan(Size("a", 1, curve([0.6, 0.7, 0.8, 1.0])).half)  # never below
    assert isnan(Size("a", 1, curve([0.0, 0.1, 0.2, 0.3])).half)  # never above
    x, y = np.log2([2.0, 8.0]), np.array([0.2, 0.6])
    assert crossing(x, y, 0.5) == pytest.approx(log2(2) + 2 * 0.75)


def heads(weights: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Rows of two heads that read and one that does not: at each k, ws of the two."""
    rows: list[dict[str, Any]] = []
    for k, pair in weights.items():
        for head, ws in enumerate((*pair, 0.9)):
            own = {"layer": 3, "head": head, "w": 0.3 if head < 2 else 0.05, "ws": ws}
            rows.append({"task": "some", "length": 512, "indexer": repr(exact()), "budget": k, **own})  # fmt: skip
    return rows


def test_reading_heads_and_the_weight_for_half_are_those_of_the_rows() -> None:
    size = Size("a", 1, curve([0.0, 0.2, 0.7, 1.0]))
    rows = heads({"1": (0.0, 0.0), "2": (0.1, 0.2), "4": (0.3, 0.4), "8": (0.6, 0.6)})
    made = _with_heads(size, rows)
    assert made.heads == 2
    # Between ws .15, at .2 right, and .35, at .7: three fifths of the way.
    assert made.constant == pytest.approx(0.15 + 0.6 * 0.2)
    assert _with_heads(size, []).heads is None
    without = [{name: x for name, x in row.items() if name not in ("w", "ws")} for row in rows]
    assert _with_heads(size, without).heads is None
    nobody = [{**row, "w": 0.01} for row in rows]
    assert _with_heads(size, nobody).heads == 0


def test_the_page_tells_sizes_and_seeds_and_what_was_not_recorded() -> None:
    small = Size("s", 4_000_000, curve([0.0, 0.0, 0.25, 0.75]))
    large = Size("l", 16_000_000, curve([0.0, 0.25, 0.75, 1.0]))
    page = as_markdown(blocks([small, large, replace(large, name="m")], {"about": "x"}, []), "f")
    assert "4 times the parameters need 0.50 times the keys for half of the score: fewer" in page
    assert "2 seeds at 16 M: half of the score at k = 2.83 to 2.83" in page and NO_KEYS in page
    known = as_markdown(blocks([replace(small, heads=2, constant=0.27)], {}, []), "f")
    assert "go right at ws = 0.27 (s)" in known and NO_KEYS not in known


def test_models_that_are_not_there_are_left_out_and_said(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="train reference --size 60m --corpus BOOKS --out up/60m"):
        topkit.study.plan("scale-quick", out="run", model=["up/60m/model", "up/14m-2/model"])
    plan = topkit.study.plan("scale-quick", out="run", model=["reference", "up/14m-2/model"])
    assert any("--size 14m --seed 2 --corpus BOOKS --out up/14m-2" in note for note in plan.notes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["scale", "scale-quick"])
def test_the_presets_name_the_sizes_and_three_seeds(name: str) -> None:
    study = read_study(name)
    assert study.kind == "scale" and study.observe == "answer"
    assert {model for model in study.model if "14m" in model or model == "reference"} == {
        "reference", "scale/14m-1/model", "scale/14m-2/model",
    }  # fmt: skip
    assert {"scale/4m/model", "scale/60m/model", "scale/150m/model"} <= set(study.model)


@pytest.mark.slow
def test_a_study_of_one_size_runs_to_its_report(tmp_path: Path) -> None:
    report = topkit.study(
        "scale-quick", out=tmp_path / "run", model="reference", lengths=512, haystacks=2,
        tasks="niah-multikey:wording=trained,distractors=8",
    )  # fmt: skip
    page = report.read_text()
    assert "14.2 M parameters" in page and "scale-1" in page
    assert topkit.report(tmp_path / "run").read_text() == page
