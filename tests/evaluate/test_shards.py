"""An evaluation on several machines: its shards, in one folder or many, make the rows of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import topkit
from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.evaluate.missing import unfinished
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.parts import read_table
from topkit.experiments.study.curves import load

TASKS = [
    "niah-multikey:distractors=3,questions=2,wording=trained",
    "kv-recall:distractors=3,questions=2",
]
KEYS = (
    "task",
    "haystack",
    "sample",
    "question",
    "indexer",
    "budget",
    "layer",
    "level",
    "head",
    "steps",
)


def evaluate(out: Path, **options: Any) -> pa.Table:
    return topkit.evaluate("reference", TASKS, 384, 2, ["sign", "exact"], 8, out=out, **options)


def rows(run: Path, table: str) -> list[dict[str, Any]]:
    read = read_table(run / table).replace_schema_metadata()
    return read.sort_by(
        [(key, "ascending") for key in KEYS if key in read.column_names]
    ).to_pylist()


def same(one: Path, other: Path) -> bool:
    """Accuracy, fidelity, means and what was said: row for row, to the bit."""
    tables = ("accuracy", "fidelity", "curve/haystacks", "curve/heads")
    said = [(run / "predictions.jsonl").read_text() for run in (one, other)]
    return said[0] == said[1] and all(rows(one, table) == rows(other, table) for table in tables)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    evaluate(out)
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards of four haystacks, each in its own folder."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(3):
        evaluate(root / str(number), shard=f"{number}/3")
    return [root / str(number) for number in range(3)]


@pytest.mark.slow
def test_the_last_shard_of_a_folder_finishes_the_run(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = evaluate(out, shard="1/2")
    assert set(own["haystack"].to_pylist()) == {1} and own.num_rows == 2 * 2 * 3
    assert not (out / "predictions.jsonl").exists() and not (out / "curve").exists()
    lines = unfinished([require_intact(out)], condensed(out)[0])
    assert len(lines) == 2 and all("1 of 2 haystacks lack rows (0)" in line for line in lines)
    evaluate(out, shard="0/2")
    assert same(out, whole) and topkit.verify(out).files == 10
    assert not unfinished([require_intact(out)], condensed(out)[0])


@pytest.mark.slow
def test_folders_of_shards_are_reported_as_one(
    whole: Path, shards: list[Path], tmp_path: Path
) -> None:
    before = [sorted(shard.rglob("*")) for shard in shards]
    path = topkit.report(shards, out=tmp_path / "report")
    assert path == tmp_path / "report" / "report.html" and "Not finished" not in path.read_text()
    assert before == [sorted(shard.rglob("*")) for shard in shards]
    topkit.report(whole)
    figures = [sorted(p.name for p in (run / "figures").iterdir()) for run in (whole, path.parent)]
    assert figures[0] == figures[1]
    for one, other in zip(load(whole), load(*shards), strict=True):
        assert one.cells == other.cells and (one.rates == other.rates).all()


@pytest.mark.slow
def test_a_report_of_some_shards_says_what_is_missing(shards: list[Path], tmp_path: Path) -> None:
    page = topkit.report([shards[2], shards[0]], out=tmp_path).read_text()
    assert "Not finished" in page and "kv-recall" in page
    assert "1 of 2 haystacks lack rows" in page
    # Of one, too: where it stands.
    assert "Not finished" in topkit.report(shards[1], out=tmp_path / "1").read_text()


@pytest.mark.slow
def test_folders_of_shards_are_merged(whole: Path, shards: list[Path], tmp_path: Path) -> None:
    out = topkit.merge(shards[:2], tmp_path / "run")
    assert len(unfinished([require_intact(out)], condensed(out)[0])) == 1
    topkit.merge([whole, *shards], out)
    assert same(out, whole) and topkit.verify(out).files == 10


def test_what_lacks_its_fidelity_is_no_shard_to_join(tmp_path: Path) -> None:
    one, other = tmp_path / "0", tmp_path / "1"
    for number, out in enumerate((one, other)):
        topkit.evaluate("reference", TASKS[0], 300, 2, "sign", 8, out=out, shard=f"{number}/2")
    gone = min((one / "fidelity").glob("*.parquet"))
    gone.unlink()
    for call in (lambda: topkit.merge([one], tmp_path / "out"), lambda: load(one, other)):
        with pytest.raises(InputError, match=f"{gone.name} is gone; run the same command again"):
            call()


def test_a_loaded_model_stays_in_its_process(tmp_path: Path) -> None:
    model, tokenizer = topkit.load("reference")
    for runner in ("pool", "ray"):
        with pytest.raises(InputError, match="runs with jobs=1"):
            topkit.evaluate(model, TASKS, 384, 1, out=tmp_path, tokenizer=tokenizer, runner=runner)
    assert not list(tmp_path.iterdir())
