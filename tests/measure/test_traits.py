"""What a remedy adds, and the trait that it goes with, are those of slow sums over a run's rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import topkit
from topkit.experiments.measure.survey import several, write_csv


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    return __import__("traits")


def test_what_remedies_add(tool: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, 3, 8), (2, 2, 40, 8))
    queries, keys = ({n: torch.randn(shape) + n for n in range(3)} for shape in shapes)
    capture = topkit.Capture.from_tensors(queries, keys, keys)
    specs = sorted({spec for pair in tool.REMEDIES.values() for spec in pair})
    topkit.measure(capture, specs, 8, out=tmp_path / "run")
    surveyed = several({"tiny": topkit.survey(capture)})
    write_csv(surveyed, tmp_path / "traits.csv")
    tool.main(tmp_path, {"tiny": tmp_path / "run"})
    with open(tmp_path / "remedies.csv") as file:
        added = {row["remedy"]: row for row in csv.DictReader(file)}
    assert {*added} == {*tool.REMEDIES} and {row["places"] for row in added.values()} == {"6"}
    rows = pq.read_table(tmp_path / "run" / "fidelity").to_pylist()
    gains = []
    for one in surveyed:
        means = {}
        for indexer in ("sign()", "keep(base=sign(), sink=4, window=0)"):
            own = [row["mass_ratio"] for row in rows
                   if row["indexer"] == indexer and row["layer"] == one["layer"]
                   and row["level"] == "head" and row["head"] // 2 == one["group"]]  # fmt: skip
            means[indexer] = sum(own) / len(own)
        gains.append(means["keep(base=sign(), sink=4, window=0)"] - means["sign()"])
    line = added["keep the sink of sign"]
    assert float(line["added"]) == pytest.approx(sum(gains) / 6, abs=1e-4)
    offsets = [one["offset"] for one in surveyed]
    ranks = [[sorted(values).index(v) for v in values] for values in (gains, offsets)]
    apart = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert float(line["with_offset"]) == pytest.approx(1 - 6 * apart / (6 * 35), abs=1e-3)
