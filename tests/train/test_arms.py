"""Studies that train: pairs, their tests, and a whole one of a tiny model."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

import topkit
from tests.tiny import READS_REFERENCE, folder, tiny
from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.runs.shards import Shard
from topkit.experiments.study.blocks import Drawn
from topkit.experiments.study.own_run import describe_study
from topkit.experiments.study.stats import Array
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.experiments.train.arms import Arm
from topkit.experiments.train.arms_plan import own_share
from topkit.experiments.train.found import Start, gaps
from topkit.experiments.train.topk_sft import _blocks, sentences


def drawn(seeds: int, gap: float, spread: float = 0.02) -> tuple[Array, Array]:
    """Rates [seeds, 3 cells, 16 haystacks] of two trainings; the second cell differs by `gap`."""
    rng = np.random.default_rng(0)
    dense = rng.random((seeds, 3, 16))
    ours = dense + rng.normal(0, spread, (seeds, 3, 1))
    ours[:, 1] += gap
    return ours, dense


def test_gaps_are_students_over_seeds_with_holm() -> None:
    ours, dense = drawn(5, 0.2)
    found = gaps(ours, dense, np.ones(16))
    by_seed = (ours - dense).mean(-1)
    assert found.units == "5 paired seeds" and found.shown.tolist() == [False, True, False]
    for cell in range(3):
        test = scipy_stats.ttest_1samp(by_seed[:, cell], 0)
        low, high = test.confidence_interval(0.95)
        assert list(found.gap[cell]) == pytest.approx([by_seed[:, cell].mean(), low, high])
    each: Any = [scipy_stats.ttest_1samp(by_seed[:, c], 0) for c in range(3)]
    order = np.sort([test.pvalue for test in each])
    assert order[0] <= 0.05 / 3 and order[1] > 0.05 / 2


def test_of_one_seed_haystacks_are_the_units_and_no_gap_is_none() -> None:
    ours, dense = drawn(1, 0.3)
    found = gaps(ours, dense, np.ones(16))
    assert "haystacks of one seed" in found.units
    same = gaps(dense, dense, np.ones(16))
    assert not same.shown.any() and (same.gap.value == 0).all()


def start(gap: float, seeds: int = 5) -> Start:
    ours, dense = drawn(seeds, gap)

    def model(rates: Array, sink: float) -> dict[str, Any]:
        curve = {"title": "t", "length": 1000, "cells": ["dense", "1%", "5%"], "rates": rates.tolist(), "questions": [1] * 16}  # fmt: skip
        heads = np.full((2, 2, 3), sink)
        reading = np.zeros((2, 2, 3))
        reading[:, 0, 1] = 0.5
        measures = {"sink": heads.tolist(), "reading": reading.tolist()}
        return {"curves": [curve], "heads": [{"title": "t", "measures": measures}]}

    return Start(
        "reference",
        {
            "before": [model(dense[0], 0.3)],
            "dense": [model(x, 0.3) for x in dense],
            "1%": [model(x, 0.1) for x in ours],
        },
    )


def test_sentences_say_what_is_shown_and_no_more() -> None:
    shown, sink = sentences(start(0.2))[0], sentences(start(0.2))[2]
    assert re.search(r": better \(\+0\.\d{3} \[", shown)
    assert re.search(r"better at k = 1% \(\+0\.\d{3}\), worse at no k", shown)
    assert "from 0.300 to 0.100 (-0.200 [-0.200, -0.200])" in sink and "of the 6 heads" in sink
    assert "not shown to differ" in sentences(start(0.0))[0]
    assert "worse (" in sentences(start(-0.2))[0]


def test_an_accuracy_is_drawn_between_nought_and_one() -> None:
    """Two seeds far apart leave more than that open."""
    far = start(0.2, seeds=2)
    for arm in ("dense", "1%"):
        far.models[arm][0]["curves"][0]["rates"][1] = [1.0] * 16
        far.models[arm][1]["curves"][0]["rates"][1] = [0.8] * 16
    (figure,) = [block for block in _blocks([far]) if isinstance(block, Drawn)]
    ends = [(row["low"], row["high"]) for row in figure.data["lines"] if "low" in row]
    assert min(low for low, _ in ends) >= 0 and max(high for _, high in ends) == 1


def test_the_presets_train_what_they_say() -> None:
    full = read_study("topk-sft")
    of = {model: full.of(model).training for model in full.model}
    assert {m: (t["seeds"], [str(k) for k in t["ratios"]]) for m, t in of.items()} == {
        "reference": (5, ["1%", "5%"]),
        "smollm2": (3, ["1%"]),
    }
    assert read_study("entropy").kind == "entropy"
    assert read_study("entropy").training == full.training
    for name in ("topk-sft-quick", "entropy-quick"):
        assert read_study(name).model == ("reference",)


def study(model: Path, out: Path, name: str, **more: Any) -> Path:
    file = out.parent / f"{name}.yaml"
    file.write_text(
        f"""
kind: {name}
model: {model}
tasks: ["niah-single:wording=trained"]
lengths: 256
haystacks: 3
indexers: [exact]
budgets: [5%, 50%]
pilot: false
training: {{ratios: [5%], seeds: 2, steps: 2, rows: 1, length: 48, warmup: 1}}
"""
    )
    return run_study(file, out=out, **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("model"), tiny("qwen3", **READS_REFERENCE))


@pytest.mark.slow
def test_a_whole_study_trains_evaluates_pairs_and_goes_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = study(model, out, "topk-sft")
    parts = sorted((out / "parts").iterdir())
    made = [json.loads(part.read_text())["arm"] for part in parts]
    assert {(a["attention"], a["ratio"], a["seed"]) for a in made} == {
        ("before", "", 0), ("dense", "", 0), ("dense", "", 1), ("topk", "5%", 0), ("topk", "5%", 1)
    }  # fmt: skip
    page, text = report.read_text(), (out / "topk-sft.md").read_text()
    assert f"Cite: {topkit.cite(out)}" in page and ", run " in topkit.cite(out)
    assert "2 paired seeds" in text and "the weight on slot 0" in text and "<table>" in page
    assert (out / "figures").glob("accuracy-*.png")
    # A part that is gone is made again from the model that stands there, and nothing else is.
    before = {part: part.read_text() for part in parts}
    parts[1].unlink()
    study(model, out, "topk-sft")
    assert {part: part.read_text() for part in parts} == before
    assert topkit.report(out) == report


@pytest.mark.slow
def test_shards_share_the_corpus_and_leave_the_parts_of_one_process(
    tmp_path: Path, model: Path
) -> None:
    out, whole = tmp_path / "out", study(model, tmp_path / "whole", "topk-sft").parent
    assert study(model, out, "topk-sft", shard="1/2") == out
    assert not (out / "report.html").exists() and len(list((out / "parts").iterdir())) == 2
    assert study(model, out, "topk-sft", shard="0/2") == out / "report.html"

    def files(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.iterdir()}

    assert files(out / "parts") == files(whole / "parts")
    # Tokens are made once, and not by each model.
    assert len(list(out.rglob("tokens.npy"))) == len(list(whole.rglob("tokens.npy"))) == 1


def found(place: Path, models: dict[str, int], start: str = "m", **more: Any) -> Path:
    """A study's folder that has the parts of some of its models; a number each stands for what was found."""
    about = {"study": "entropy", "model": start, "kind": "entropy", "topkit": topkit.__version__}
    arms = [f"{start}-before", f"{start}-dense-seed-0", f"{start}-topk-5-seed-0"]
    about |= {"arms": arms, "parts": [f"{arm}-0a.json" for arm in arms], **more}
    place.mkdir()
    describe_study(place, about, "cpu", False)
    (place / "study.json").write_text(json.dumps(about))
    (place / "parts").mkdir()
    for arm, number in models.items():
        (place / "parts" / f"{start}-{arm}-0a.json").write_text(
            json.dumps({"arm": asdict(_arm(arm, start)), "n": number})
        )
    return place


def _arm(name: str, start: str) -> Arm:
    attention, _, seed = name.partition("-seed-")
    attention, _, ratio = attention.partition("-")
    return Arm(start, start, attention, f"{ratio}%" if ratio else "", int(seed or 0))


def test_shards_and_starts_of_their_own_folders_are_joined(tmp_path: Path) -> None:
    first = found(tmp_path / "a", {"before": 1, "dense-seed-0": 2})
    second = found(tmp_path / "b", {"dense-seed-0": 2, "topk-5-seed-0": 3})
    other = found(tmp_path / "c", {"before": 4}, start="n")
    out = topkit.merge([first, second, other], tmp_path / "out")
    said = json.loads((out / "study.json").read_text())
    names = [*(f"m-{a}-0a.json" for a in ("before", "dense-seed-0", "topk-5-seed-0")), "n-before-0a.json"]  # fmt: skip
    assert said["model"] == "m, n" and said["parts"][:4] == names and len(said["arms"]) == 6
    assert {p.name: json.loads(p.read_text())["n"] for p in (out / "parts").iterdir()} == {
        name: n for n, name in enumerate(names, 1)
    }
    assert run_file.read(out)["asked"] == [{"model": "m"}, {"model": "n"}]  # type: ignore[index]
    # Said again it changes nothing, and a later shard is added, which may be said alone.
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    topkit.merge([first, second, other], out)
    topkit.merge([found(tmp_path / "d", {"dense-seed-0": 5}, start="n")], out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((out / "parts").iterdir())) == 5
    assert json.loads((out / "study.json").read_text()) == said
    assert not list(out.rglob("*.tmp"))


def test_what_cannot_be_joined_of_studies_that_train_is_refused(tmp_path: Path) -> None:
    first = found(tmp_path / "a", {"before": 1})
    twice = found(tmp_path / "b", {"before": 2})
    otherwise = found(tmp_path / "c", {"dense-seed-0": 2}, about="x")
    again = found(tmp_path / "d", {}, parts=[f"m-{n}-0b.json" for n in range(3)])
    torn = found(tmp_path / "e", {"before": 1})
    (torn / "study.json").write_text('{"model": ')
    none = found(tmp_path / "f", {"before": 1})
    (none / "study.json").unlink()
    plain = tmp_path / "g"
    plain.mkdir()
    above = found(tmp_path / "h", {}, parts=["../up.json", *(f"m-{n}-0a.json" for n in range(2))])
    few = found(tmp_path / "i", {}, parts=["m-before-0a.json"])
    half = found(tmp_path / "j", {"dense-seed-0": 2})
    (half / "parts" / "m-dense-seed-0-0a.json").write_text('{"arm": {"start": "m"')
    strange = found(tmp_path / "k", {"dense-seed-0": 2})
    (strange / "parts" / "m-dense-seed-0-0a.json").rename(
        strange / "parts" / "m-topk-5-seed-0-0a.json"
    )
    for other, message in (
        (twice, "was trained or evaluated twice"),
        (otherwise, r"different studies \(about differ\)"),
        (again, "m-before was trained or asked in two ways"),
        (torn, "study.json"),
        (none, "lacks study.json"),
        (plain, "holds no run"),
        (above, "the name of a JSON file"),
        (few, "has 3 arms and 1 parts"),
        (half, "m-dense-seed-0-0a.json"),
        (strange, "is of another model, m-dense-seed-0"),
    ):
        with pytest.raises(InputError, match=message):
            topkit.merge([first, other], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="nothing was measured"):
        topkit.merge([found(tmp_path / "l", {})], tmp_path / "out")
    out = topkit.merge([first], tmp_path / "out")
    with pytest.raises(InputError, match="trained or evaluated twice"):
        topkit.merge([twice], out)
    # As a merge that was killed leaves it.
    (out / "study.json").unlink()
    with pytest.raises(InputError, match="trained or evaluated twice"):
        topkit.merge([twice], out)
    topkit.merge([first], out)
    assert (out / "study.json").exists()


def test_half_of_a_part_is_named_by_the_report(tmp_path: Path) -> None:
    place = found(tmp_path / "a", {"before": 1})
    part = place / "parts" / "m-before-0a.json"
    part.write_text(part.read_text()[:20])
    with pytest.raises(InputError, match=r"m-before-0a\.json.*delete it"):
        topkit.report(place)


def test_shards_deal_each_attention_evenly(tmp_path: Path) -> None:
    every: Any = [
        (None, Arm("m", "m", *rest), None)
        for rest in (("before", "", 0), *(one for seed in range(4) for one in (("dense", "", seed), ("topk", "1%", seed))))
    ]  # fmt: skip
    shares = [own_share(every, Shard(n, 2)) for n in range(2)]
    assert sorted(one[1] for own in shares for one in own) == sorted(one[1] for one in every)
    for own in shares:
        kinds = [arm.attention for _, arm, _ in own]
        assert kinds.count("dense") == kinds.count("topk") == 2
        assert [one for one in every if one in own] == own


@pytest.mark.slow
def test_a_study_of_entropy_has_every_head_before_and_after(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    report = study(model, out, "entropy")
    text = (out / "entropy.md").read_text()
    assert "| layer | head | before: nats | before: H / ln n |" in text
    assert "rank correlation" in text and "nats" in report.read_text()


def test_what_cannot_be_a_study_that_trains_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="exact Top-k"):
        study(model, tmp_path / "a", "topk-sft", indexers="sign", budgets="5%")
    with pytest.raises(InputError, match="one of several that write there"):
        study(model, tmp_path / "b", "topk-sft", shard="0/2", force=True)
    with pytest.raises(InputError, match="do not fit"):
        study(model, tmp_path / "c", "topk-sft", tasks="niah-multikey:distractors=60")
    file = tmp_path / "wrong.yaml"
    for keys, message in (
        ("{ratios: 5}", "a ratio is in per cent"),
        ("{ratios: 0%}", "must lie in"),
        ("{steps: 3}", "ratios is missing"),
        ("{ratios: 1%, stps: 3}", "there is no key 'stps'"),
        ("3", "expected a mapping"),
    ):
        file.write_text(f"like: topk-sft-quick\ntraining: {keys}\n")
        with pytest.raises(InputError, match=message):
            read_study(file)
