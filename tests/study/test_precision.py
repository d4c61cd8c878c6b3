"""The study lightning-precision: its numbers by hand, its parts of a loss, its folder, dumps, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.precision import ORACLES, SUMMED, Judge
from topkit.experiments.study.precision_table import gathered
from topkit.experiments.study.study_file import read_study
from topkit.indexers import exact, lightning
from topkit.indexers.budget import parse_budgets
from topkit.indexers.spec import parse

CPU = torch.device("cpu")


def layer(number: int = 0, length: int = 60, asked: int = 5, of_index: bool = True) -> LayerTensors:
    """A layer of four heads in two groups, and of an index of three heads."""
    g = torch.Generator().manual_seed(number)
    positions = torch.arange(length - asked, length)
    drawn = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    index: dict[str, Any] = dict(index_queries=drawn(1, 3, asked, 8), index_keys=drawn(1, 1, length, 8), index_weights=drawn(1, asked, 3))  # fmt: skip
    return LayerTensors(
        0, number, 2 * drawn(1, 4, asked, 6), drawn(1, 2, length, 6), drawn(1, 2, length, 6), positions, 0.4,
        **(index if of_index else {}),
    )  # fmt: skip


def top(scores: Tensor, k: int) -> set[int]:
    return set(scores.topk(k).indices.tolist())


def by_hand(t: LayerTensors, chosen: Callable[[int, int, int], set[int]], k: int) -> tuple[float, float]:  # fmt: skip
    """Of lists chosen(head, query, keys seen): the share of own Top-k and of the common list."""
    own, summed = [], []
    for i, at in enumerate(t.positions.tolist()):
        logits = torch.stack([t.scaling * t.keys[0, h // 2, : at + 1] @ t.queries[0, h, i] for h in range(4)])  # fmt: skip
        common = top(logits.double().softmax(-1).sum(0), k)
        for head in range(4):
            kept = chosen(head, i, at + 1)
            own.append(len(kept & top(logits[head], k)) / k)
            summed.append(len(kept & common) / k)
    return sum(own) / len(own), sum(summed) / len(summed)


def test_precision_is_the_share_of_own_lists_and_of_the_common_one() -> None:
    t, k = layer(), 7
    cells = [Cell(one, budget) for one in (*ORACLES, parse("lightning:weights=given")) for budget in parse_budgets(k)]  # fmt: skip
    rows = {row["indexer"]: row for row in Judge(cells, 0, CPU, lambda _: t).rows([0])}

    def indexed(_: int, i: int, seen: int) -> set[int]:
        assert t.index_queries is not None and t.index_keys is not None and t.index_weights is not None  # fmt: skip
        hits = torch.relu(t.index_queries[0, :, i] @ t.index_keys.reshape(-1, 8)[:seen].T)
        return top((t.index_weights[0, i, :, None] * hits).sum(0), k)

    def alone(head: int, i: int, seen: int) -> set[int]:
        return top(t.keys[0, head // 2, :seen] @ t.queries[0, head, i], k)

    def together(_: int, i: int, seen: int) -> set[int]:
        logits = torch.stack([t.scaling * t.keys[0, h // 2, :seen] @ t.queries[0, h, i] for h in range(4)])  # fmt: skip
        return top(logits.double().softmax(-1).sum(0), k)

    for recipe, chosen in ((exact(), alone), (SUMMED, together), (lightning("given"), indexed)):
        own, summed = by_hand(t, chosen, k)
        row = rows[repr(recipe)]
        assert row["own"] == pytest.approx(own) and row["summed"] == pytest.approx(summed)
        assert row["layer"] == 0 and row["k"] == k and 0 < row["mass"] <= 1
    assert rows[repr(SUMMED)]["summed"] == rows[repr(exact())]["own"] == 1
    assert rows[repr(lightning("given"))]["fp32"] == 1


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Two samples of two layers."""
    every = {(s, n): layer(10 * s + n) for s in (0, 1) for n in (0, 1)}
    names = ("queries", "keys", "values", "index_queries", "index_keys", "index_weights")
    stacked: dict[str, Any] = {
        name: {n: torch.cat([getattr(every[s, n], name) for s in (0, 1)]) for n in (0, 1)}
        for name in names
    }
    capture = Capture.from_tensors(**stacked, positions=list(range(55, 60)), scaling=0.4)
    capture.save(tmp_path / "dump")
    return tmp_path / "dump"


def study_file(folder: Path, **keys: Any) -> Path:
    """A study of dumps."""
    lines = {"kind": "lightning-precision", "budgets": [4, 12], "indexers": [
        "lightning:weights=given,dtype=fp8", "lightning:weights=given,dtype=int4",
        "lightning:weights=given,dtype=int4,hadamard=False", "sign()",
    ], **keys}  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in lines.items()))
    return path


def test_a_study_of_a_dump_splits_the_loss_and_goes_on(dump: Path, tmp_path: Path) -> None:
    path, out = study_file(tmp_path, captures=[str(dump)]), tmp_path / "run"
    report = topkit.study(path, out=out)
    assert report == out / "report.html" and (out / "figures" / "layers-1.png").is_file()
    about = json.loads((out / "study.json").read_text())
    (setting,) = gathered(out / "precision", about["settings"])
    assert setting.layers == (0, 1) and setting.budgets == ["4", "12"] and not setting.text
    for recipe in ("lightning:weights=given", "lightning:weights=given,dtype=int4"):
        one = parse(recipe)
        loss = setting.loss(one, "12")
        assert loss is not None
        missing = 1 - setting.mean(one, "12", "own")
        assert loss.sharing + loss.scoring + loss.quantisation == pytest.approx(missing)
        assert (loss.quantisation == 0) == (one == lightning("given"))
    assert setting.loss(parse("sign()"), "12") is None
    assert f"Cite: {topkit.cite(out)}" in report.read_text() and ", run " in topkit.cite(out)
    page = (out / "precision.md").read_text()
    assert "one list for all heads costs" in page and "Hadamard's rotation changes" in page
    # A part that is gone is done again, and no other; a report alone reads what is there.
    parts = sorted((out / "precision").iterdir())
    before = {part: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()
    plan = topkit.study.plan(path, out=out)
    assert plan.done == len(parts) - 1 == 1
    with pytest.raises(InputError, match="stands in its own folder"):
        topkit.report(out, k=4)
    with pytest.raises(InputError, match="stands in its own folder"):
        topkit.report(out, out=tmp_path / "elsewhere")
    partial = topkit.report(out)
    assert "has 1 of 2 samples" in partial.read_text()
    topkit.run(plan)
    assert (out / "precision.md").read_text() == page
    assert {part.stat().st_mtime_ns == before[part] for part in parts[1:]} == {True}
    parts[0].write_text('{"title": 3}')
    with pytest.raises(InputError, match="delete it, and run the study again"):
        topkit.report(out)


def test_an_index_alone_is_compared_with_itself_in_float32(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    index = [torch.randn(*s, generator=g) for s in ((1, 4, 3, 16), (1, 30, 16), (1, 3, 4))]
    capture = Capture.from_tensors(
        index_queries=index[0], index_keys=index[1], index_weights=index[2]
    )
    folder = tmp_path / "dump"
    capture.save(folder)
    out = tmp_path / "run"
    plan = topkit.study.plan(study_file(tmp_path, captures=[str(folder)], budgets=[5]), out=out)
    assert any("sign() is left out" in note for note in plan.notes)
    topkit.run(plan)
    about = json.loads((out / "study.json").read_text())
    (setting,) = gathered(out / "precision", about["settings"])
    int4 = parse("lightning:weights=given,dtype=int4")
    assert 0 < setting.mean(int4, "5", "fp32") <= 1 and setting.loss(int4, "5") is None
    assert setting.mean(lightning("given"), "5", "fp32") == 1


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"kind": "poem"}, "unknown value 'poem'"),
        ({"captures": ["nowhere"]}, "nowhere"),
        ({"indexers": ["lightning()"], "captures": True}, "a capture, or a file of tensors"),
        ({}, "tasks is missing"),
    ],
)
def test_bad_files_are_refused(keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        topkit.study.plan(study_file(tmp_path, **keys), out=tmp_path / "run")


def test_captures_and_shards_have_their_place(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="captures are of a leaderboard, or of a study of its own kind"
    ):
        topkit.study.plan("quick", out=tmp_path / "run", captures=[str(dump)])
    with pytest.raises(InputError, match="has no shards"):
        topkit.study.plan(study_file(tmp_path, captures=[str(dump)]), out=tmp_path / "run", shard="0/2")  # fmt: skip


@pytest.mark.parametrize("name", ["lightning-precision", "lightning-precision-quick"])
def test_the_presets_ask_what_the_study_is_for(name: str) -> None:
    study = read_study(name)
    assert study.kind == "lightning-precision" and [str(k) for k in study.budgets] == ["0.8%", "1.6%", "5%"]  # fmt: skip
    dtypes = {(r.dtype, r.hadamard) for r, _ in study.indexers if isinstance(r, lightning)}
    assert dtypes >= {("fp32", True), *((d, h) for d in ("fp8", "mxfp4", "int4") for h in (True, False))}  # fmt: skip
    assert len(study.budget) == 2 and {task.name for task, _ in study.tasks} >= {"books", "niah-multikey"}  # fmt: skip


@pytest.mark.slow
def test_a_model_is_judged_in_every_layer(tmp_path: Path) -> None:
    report = topkit.study(
        "lightning-precision-quick", out=tmp_path / "run", lengths=512, haystacks=1, budgets="5%"
    )
    page = report.read_text()
    assert "of the common list at k = 5%" in page and "beside the best untrained" in page
