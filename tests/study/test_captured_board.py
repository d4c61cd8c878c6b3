"""The leaderboard of captures: its units, its numbers by those of a measurement, who joins, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.measure import measure
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.captured_board import markdown_of
from topkit.experiments.study.captured_units import LAYERS, SAMPLES, units_of
from topkit.indexers.budget import Budget
from topkit.indexers.spec import parse

SPECS = ["exact()", "random()", "streaming_llm()", "sign()", "quest()", "snapkv(window=4)"]


def captured(folder: Path, samples: int = 3) -> Path:
    """Samples of two layers, four heads in two groups."""
    drawn = torch.Generator().manual_seed(0)
    by_layer: dict[str, Any] = {
        name: {n: torch.randn(samples, heads, count, 16, generator=drawn) for n in (0, 1)}
        for name, heads, count in (("queries", 4, 2), ("keys", 2, 200), ("values", 2, 200))
    }
    Capture.from_tensors(**by_layer, positions=[198, 199]).save(folder)
    return folder


def study_file(folder: Path, **keys: Any) -> Path:
    lines = {
        "leaderboard": True, "lengths": [640], "haystacks": 1, "budgets": [4, 8], "pilot": False,
        "tasks": ["niah-single"], "budget": ["bytes=0.08", "bytes=0.4"], "indexers": SPECS, **keys,
    }  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(lines))
    return path


def rows_of(mass: Any) -> pa.Table:
    """Rows of one cell by mass [samples, layers]."""
    samples, layers = np.indices(np.shape(mass)).reshape(2, -1)
    flat = np.ravel(mass)
    own = {"indexer": ["sign()"] * len(flat), "budget": ["8"] * len(flat)}
    own |= {"sample": samples, "layer": layers, "rows": np.full(len(flat), 4)}
    return pa.table(own | {n: flat for n in ("mass", "recall", "bytes_read", "visible")})


ABOUT = {"name": "one", "tokens": 200}


def test_samples_are_the_units_and_of_one_alone_its_layers():
    several = units_of(rows_of([[0.2, 0.4, 0.9], [0.5, 0.5, 0.2]]), ABOUT)
    assert several.unit == SAMPLES and several.curve.fidelity["mass"][0] == pytest.approx(
        [0.5, 0.4]
    )
    one = units_of(rows_of([[0.2, 0.4, 0.9]]), ABOUT)
    assert one.unit == LAYERS and one.curve.fidelity["mass"][0] == pytest.approx([0.2, 0.4, 0.9])
    assert several.curve.cells == one.curve.cells == (Cell(parse("sign()"), Budget(8)),)
    assert np.isnan(one.curve.rates).all()


def test_a_sample_that_was_not_measured_whole_is_no_unit():
    half = units_of(rows_of([[0.2, 0.4], [0.5, 0.5]]).slice(0, 3), ABOUT)
    mass = half.curve.fidelity["mass"][0]
    assert mass[0] == pytest.approx(0.3) and np.isnan(mass[1])


@pytest.mark.slow
def test_it_runs_to_its_page_and_lets_another_join(tmp_path: Path):
    """Its numbers are those of a measurement; the second run computes the cells of what joins alone."""
    path, out = captured(tmp_path / "dump"), tmp_path / "run"
    file = study_file(tmp_path)
    report = topkit.study(file, out=out, captures=[str(path)], device="cpu")
    told = (out / "leaderboard.md").read_text()
    assert report == out / "report.html" and "the units are its samples" in told
    assert "### dump, bytes=0.08: 10.24 bytes a token and layer" in told
    assert (out / "figures" / "leaderboard-by-bytes-dump.png").exists()
    assert f"Cite: {topkit.cite(out)}" in report.read_text() and ", run " in topkit.cite(out)
    (about,) = json.loads((out / "study.json").read_text())["captured"]
    (ran,) = {
        row["ran"]
        for row in about["ran"]
        if "quest" in row["recipe"] and row["bytes"] == "bytes=0.4"
    }
    alone = measure(path, ran, [4, 8], device="cpu").summary()
    mean = np.mean([row["mass"] for row in alone])
    row = next(line for line in told.split("bytes=0.4:")[1].splitlines() if "`quest(" in line)
    assert f"| {mean:.3f} |" in row
    before = {p.name for p in (out / "dump" / "fidelity").glob("*.parquet")}
    topkit.study(file, out=out, captures=[str(path)], device="cpu", indexers=["sign:center=True"])
    after = {p.name for p in (out / "dump" / "fidelity").glob("*.parquet")}
    assert before < after and len(after - before) == 6
    assert "sign(center=True)" in (out / "leaderboard.md").read_text()
    topkit.study(file, out=out, captures=[str(path)], device="cpu")
    whole = (out / "leaderboard.md").read_text()
    assert "sign(center=True)" in whole  # it stays
    assert after == {p.name for p in (out / "dump" / "fidelity").glob("*.parquet")}
    # The small tables stand for the rows.
    rmtree(out / "dump")
    assert markdown_of(out, "figures") in whole


def test_what_a_capture_lacks_is_left_out_with_the_reason(tmp_path: Path):
    plan = topkit.study.plan(study_file(tmp_path), out=tmp_path / "run", captures=[str(captured(tmp_path / "dump"))], device="cpu")  # fmt: skip
    (line,) = [line for line in plan.notes if "snapkv" in line]
    assert line.startswith("dump: snapkv(window=4) is left out") and "--prefill-queries" in line
    assert plan.rows > 0 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"shard": "0/2"}, "has no shards"),
        ({"captures": ["nowhere"]}, "nowhere"),
    ],
)
def test_what_it_refuses(more: dict[str, Any], says: str, tmp_path: Path):
    own = {"captures": [str(captured(tmp_path / "dump"))], "out": tmp_path / "run", **more}
    with pytest.raises(InputError, match=says):
        topkit.study.plan(study_file(tmp_path), **own)


def test_where_nothing_can_be_asked_it_says_why(tmp_path: Path):
    path = str(captured(tmp_path / "dump"))
    file = study_file(tmp_path, indexers=["exact()", "snapkv()"])
    with pytest.raises(InputError, match=r"no indexer can be asked of .*--prefill-queries"):
        topkit.study.plan(file, captures=[path], out=tmp_path / "run")
