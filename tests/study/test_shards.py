"""A study of several runs and a pilot, cut into shards: in one folder, or in folders that are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import topkit
from topkit.experiments.runs.parts import read_table

STUDY: dict[str, Any] = {
    "tasks": ["niah-multikey:wording=trained,questions=2,distractors=6"],
    "lengths": [384],
    "haystacks": 2,
    "budgets": [16],
    "indexers": ["exact()", "sign()", "random()"],
    "seed": [0, 5],
    "pilot": {"haystacks": 1, "budgets": [2, 4, 8], "dense_at_least": 0, "exact_between": [0, 1]},
}
KEYS = ("haystack", "question", "indexer", "budget")


def rows(run: Path) -> list[dict[str, Any]]:
    table = read_table(run / "accuracy").replace_schema_metadata()
    return table.sort_by([(key, "ascending") for key in KEYS]).to_pylist()


@pytest.mark.slow
def test_shards_share_a_pilot_and_leave_the_rows_and_the_report_of_one_process(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    whole = topkit.study(path, out=tmp_path / "whole").parent
    out = tmp_path / "run"
    assert topkit.study(path, out=out, shard="1/2") == out
    assert not (out / "report.html").exists() and topkit.verify(out / "pilot").files == 3
    assert topkit.study(path, out=out, shard="0/2") == out / "report.html"
    own = [tmp_path / str(number) for number in range(2)]
    for number, folder in enumerate(own):
        topkit.study(path, out=folder, shard=f"{number}/2")
    page = topkit.report(own[1], out=tmp_path / "part").read_text()
    assert "1 of 2 haystacks lack rows (0)" in page
    joined = topkit.report(own, out=tmp_path / "report").read_text()
    assert "Not finished" not in joined
    merged = topkit.merge(own, tmp_path / "merged")
    assert not topkit.study.plan(path, out=merged).jobs
    assert topkit.report(merged) == merged / "report.html"
    for name in ("pilot", "seed-0", "seed-5"):
        assert rows(out / name) == rows(merged / name) == rows(whole / name)
