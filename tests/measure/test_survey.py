"""A survey's traits are those of their formulas, written out; tables, figure and command show them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import topkit
from topkit.errors import InputError
from topkit.experiments.measure.survey import TRAITS, several
from topkit.experiments.measure.survey_figure import save_survey_figure, survey_figure


def slow(queries: Tensor, keys: Tensor, positions: list[int], scaling: float, sink: int) -> dict:
    """One group [heads, Tq, D] over its keys [T, D], number by number."""
    first, sinks, entropies, supports = [], [], [], []
    for head in queries.tolist():
        for query, at in zip(head, positions, strict=True):
            scores = [
                scaling * sum(x * y for x, y in zip(query, key, strict=True))
                for key in keys[: at + 1].tolist()
            ]
            total = sum(math.exp(s) for s in scores)
            weights = [math.exp(s) / total for s in scores]
            entropy = -sum(w * math.log(w) for w in weights if w)
            first.append(weights[0])
            sinks.append(sum(weights[:sink]))
            entropies.append(entropy)
            supports.append(math.exp(entropy))
    rows, count, dim = keys.tolist(), len(keys), keys.shape[1]
    mean = [sum(key[d] for key in rows) / count for d in range(dim)]
    off = [[key[d] - mean[d] for d in range(dim)] for key in rows]
    others = [sum(key[d] for key in rows[1:]) / (count - 1) for d in range(dim)]

    def norm(x: list[float]) -> float:
        return math.sqrt(sum(v * v for v in x))

    def widest(of: list[list[float]]) -> float:
        rms = sorted(math.sqrt(sum(key[d] ** 2 for key in of) / count) for d in range(dim))
        return rms[-1] / ((rms[(dim - 1) // 2] + rms[dim // 2]) / 2)

    cosine = sum(x * y for x, y in zip(rows[0], others, strict=True)) / norm(rows[0]) / norm(others)
    return {
        "first_weight": sum(first) / len(first),
        "sink_weight": sum(sinks) / len(sinks),
        "entropy": sum(entropies) / len(entropies),
        "support": sum(supports) / len(supports),
        "offset": norm(mean) / math.sqrt(sum(norm(x) ** 2 for x in off) / count),
        "outliers": widest(rows),
        "outliers_centred": widest(off),
        "sink_cosine": cosine,
    }


@pytest.mark.parametrize("seed", range(4))
def test_traits_are_those_of_their_formulas(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd shapes, several samples and layers, few queries a block."""
    monkeypatch.setattr("topkit.experiments.measure.survey._BLOCK", 40)
    generator = torch.Generator().manual_seed(seed)
    samples, layers, groups, shared, dim, length = 2, 2, 2, 3, 5 + seed, 13
    shapes = ((samples, groups * shared, 4, dim), (samples, groups, length, dim))
    queries, keys = (
        {n: torch.randn(shape, generator=generator) for n in range(layers)} for shape in shapes
    )
    for n in range(layers):
        keys[n][..., 1] += 4
        keys[n][:, :, 0] *= 3
    positions = [2, 5, 6, 12]
    capture = topkit.Capture.from_tensors(queries, keys, positions=positions, scaling=0.3)
    rows = topkit.survey(capture, sink=3).rows
    assert [(row["layer"], row["group"], row["heads"]) for row in rows] == [
        (layer, group, 3) for layer in range(layers) for group in range(groups)
    ]
    for row in rows:
        n, g = row["layer"], row["group"]
        each = [
            slow(queries[n][s, 3 * g : 3 * g + 3], keys[n][s, g], positions, 0.3, 3)
            for s in range(samples)
        ]
        for name in TRAITS:
            mean = sum(one[name] for one in each) / samples
            assert row[name] == pytest.approx(mean, rel=2e-5), name


def capture_of(keys: Tensor) -> topkit.Capture:
    return topkit.Capture.from_tensors(torch.ones(1, 2, 1, keys.shape[-1]), keys)


def test_traits_that_are_known() -> None:
    keys = torch.zeros(1, 1, 8, 4)
    keys[..., 0] = 2
    (row,) = topkit.survey(capture_of(keys)).rows
    assert row["first_weight"] == pytest.approx(1 / 8)
    assert row["sink_weight"] == pytest.approx(1 / 2)
    assert row["support"] == pytest.approx(8)
    assert row["sink_cosine"] == pytest.approx(1)
    # Keys that are all alike have no spread, and channels that are all zero no median.
    assert row["offset"] is row["outliers"] is row["outliers_centred"] is None


def test_a_single_key_has_no_others() -> None:
    (row,) = topkit.survey(capture_of(torch.ones(1, 1, 1, 4))).rows
    assert row["first_weight"] == row["sink_weight"] == row["support"] == 1
    assert row["sink_cosine"] is row["offset"] is None


def test_layers_are_means_of_their_groups(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 9, 4, generator=generator)
    made = topkit.survey(topkit.Capture.from_tensors(torch.ones(1, 4, 2, 4), keys))
    (layer,) = made.by_layer()
    for name in TRAITS:
        assert layer[name] == pytest.approx(sum(row[name] for row in made.rows) / 2)
    with open(made.to_csv(tmp_path / "t.csv")) as file:
        table = list(csv.DictReader(file))
    assert [float(row["offset"]) for row in table] == [row["offset"] for row in made.rows]
    assert len(panels(made)) == len(TRAITS)
    assert save_survey_figure(made, tmp_path / "t.svg").read_text().startswith("<svg")
    with pytest.raises(InputError, match=r"ends in \.png"):
        save_survey_figure(made, tmp_path / "t.gif")


def test_several_captures_share_panels_and_a_table() -> None:
    made = {
        name: topkit.survey(
            topkit.Capture.from_tensors(
                {n: torch.ones(1, 2, 1, 4) for n in range(layers)},
                {n: torch.randn(1, 1, 9, 4) for n in range(layers)},
            )
        )
        for name, layers in (("one", 2), ("other", 5))
    }
    rows = several(made)
    assert [(row["capture"], row["layer"]) for row in rows] == [
        *(("one", n) for n in range(2)),
        *(("other", n) for n in range(5)),
    ]
    assert several(made, by_layer=True)[1] == {"capture": "one", **made["one"].by_layer()[1]}
    for panel, trait in zip(panels(made), TRAITS, strict=True):
        rows = panel.layer[0].data.values
        for name, one in made.items():
            its = [(row["depth"], row[trait]) for row in rows if row["capture"] == name]
            assert [y for _, y in its] == [row[trait] for row in one.by_layer()]
            assert (its[0][0], its[-1][0]) == (0, 1)  # the depth of its own model


def panels(made: Any) -> list[Any]:
    """The panels of a survey's figure, in their order."""
    return [panel for row in survey_figure(made).vconcat for panel in row.hconcat]


def test_the_command_compares_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from topkit.cli.commands import app
    from topkit.cli.exits import run

    for name in ("a", "b"):
        capture_of(torch.randn(1, 2, 9, 4)).save(tmp_path / name)
    words = ["survey", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    assert run(app, [*words, "--csv", str(tmp_path / "t.csv")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["capture"], row["group"]) for row in shown] == [
        (name, group) for name in ("a", "b") for group in (0, 1)
    ]
    with open(tmp_path / "t.csv") as file:
        assert [row["capture"] for row in csv.DictReader(file)] == ["a", "a", "b", "b"]
    assert run(app, ["survey", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "named twice" in capsys.readouterr().err


def test_padding_and_what_a_query_cannot_see_are_left_out() -> None:
    """Keys behind a row's length, and those behind a query's position, weigh nothing."""
    keys, queries = torch.randn(1, 1, 9, 4), torch.randn(1, 2, 3, 4)
    short = topkit.Capture.from_tensors(queries, keys[:, :, :6], positions=[1, 3, 5])
    padded = torch.cat([keys[:, :, :6], 1e3 * torch.ones(1, 1, 3, 4)], 2)
    long = topkit.Capture.from_tensors(queries, padded, positions=[1, 3, 5], lengths=[6])
    assert topkit.survey(long).rows == topkit.survey(short).rows


def test_what_is_no_capture_or_layer(tmp_path: Path) -> None:
    keys = torch.randn(1, 1, 9, 4)
    with pytest.raises(InputError, match="no layer"):
        topkit.survey(capture_of(keys), layers=[3])
    with pytest.raises(InputError, match="sink must be at least 1"):
        topkit.survey(capture_of(keys), sink=0)
    with pytest.raises(InputError):
        topkit.survey(tmp_path / "nothing")


def test_the_command_shows_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from topkit.cli.commands import app
    from topkit.cli.exits import run

    capture_of(torch.randn(1, 2, 9, 4)).save(tmp_path / "capture")
    words = ["survey", str(tmp_path / "capture"), "--csv", str(tmp_path / "t.csv")]
    assert run(app, [*words, "--figure", str(tmp_path / "t.png"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown) == 2 and set(TRAITS) < set(shown[0])
    assert (tmp_path / "t.png").stat().st_size > 1000
    assert run(app, words) == 0
    assert "sink cosine" in capsys.readouterr().out
    assert run(app, ["survey", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_in_an_engines_layout_is_surveyed(tmp_path: Path) -> None:
    q, k = torch.randn(3, 4, 8), torch.randn(40, 2, 8)
    torch.save({"q": q, "k": k}, tmp_path / "a.pt")
    rows = topkit.survey(tmp_path / "a.pt", layout="thd", scaling=0.5).rows
    wanted = topkit.Capture.from_tensors(q.transpose(0, 1), k.transpose(0, 1), scaling=0.5)
    assert (
        rows == topkit.survey(wanted).rows
        and rows != topkit.survey(tmp_path / "a.pt", layout="thd").rows
    )
    from topkit.cli.commands import app
    from topkit.cli.exits import run

    assert run(app, ["survey", str(tmp_path / "a.pt"), "--layout", "thd", "--scaling", "0.5"]) == 0
