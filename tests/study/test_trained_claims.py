"""What docs/claims.md says of studies that train: verdicts over paired seeds, and a row for each training."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topkit.experiments.train.arms import Arm

ROOT = Path(__file__).parents[2]
TITLE = "kv-recall, 64 tokens"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, Any], Any]:
    """Writes the parts of a study by what a model (how it was trained, seed) found, three seeds each; gives the module."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    trained = importlib.import_module("trained_claims")
    for module in (trained, importlib.import_module("committed")):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def write(study: str, found: Callable[[str, int], dict[str, Any]]) -> Any:
        folder, names = tmp_path / study, list[str]()
        (folder / trained.PARTS).mkdir(parents=True)
        for how, seed in [
            ("before", 0),
            *((how, n) for how in ("dense", "topk") for n in range(3)),
        ]:
            ratio = "1%" if how == "topk" else ""
            arm = Arm("reference", "reference", how, ratio, seed)
            names.append(f"{arm.name}-0a.json")
            part = {"arm": asdict(arm), "curves": [], "heads": [], **found(how, seed)}
            (folder / trained.PARTS / names[-1]).write_text(json.dumps(part))
        said = {"study": study, "model": "reference", trained.PARTS: names}
        (folder / "study.json").write_text(json.dumps(said))
        return trained

    return write


@pytest.mark.parametrize(
    ("high", "verdict", "word"),
    [(0.3, "supported", "better"), (-0.1, "not supported", "worse"), (0.0, "undecided", "not shown to differ")],
)  # fmt: skip
def test_training_through_top_k_is_judged_over_paired_seeds(
    results: Any, high: float, verdict: str, word: str
):
    """Of three seeds, each `high` above its dense training, give or take a little."""

    def found(how: str, seed: int) -> dict[str, Any]:
        rate = 0.5 + 0.01 * seed + (high + 0.02 * (seed - 1) if how == "topk" else 0)
        curve = {"title": TITLE, "cells": ["dense", "1%"], "rates": [[0.9, 0.9], [rate, rate]], "questions": [4, 4], "length": 64}  # fmt: skip
        return {"curves": [curve]}

    answer = results("topk-sft", found).sft_helps()
    assert answer.verdict == verdict
    assert answer.on == ["`results/topk-sft`: `topkit study topk-sft --model reference --corpus BOOKS --task kv-recall --length 64 -k 1% --samples 2 --out runs/topk-sft`"]  # fmt: skip
    above, table, left = answer.found
    assert left.text == "Not judged yet: smollm2."
    # Student's interval of three seeds that differ by 0.02: 4.303 standard errors of 0.02 / sqrt(3).
    gap = f"{high:+.3f} [{high - 0.0497:+.3f}, {high + 0.0497:+.3f}]"
    assert f"{word} in 1 of 1 pairs, by {high:+.3f}" in above.text
    largest = f"at 1% of the keys, on kv-recall after training at 1%: {0.51 + high:.3f}, and 0.510 after dense training ({gap}, 3 paired seeds)"  # fmt: skip
    assert (largest in above.text) == (high > 0)
    sweep = f"{'1%' if high > 0 else 'none'}; {'1%' if high < 0 else 'none'}"
    scores = f"{0.51 + high:.3f}, 0.510"
    assert table.rows == [["reference", TITLE, "1%", scores, gap, "3 paired seeds", word, sweep, "+0.000 [+0.000, +0.000]"]]  # fmt: skip


def test_what_training_moves_is_a_row_for_each_training(results: Any):
    """Training through Top-k gives slot 0 another 0.1, and turns the order of ten heads round, eight of which are readers."""
    read = np.arange(10)[::-1] / 10

    def found(how: str, seed: int) -> dict[str, Any]:
        own = read[::-1] if how == "topk" else read
        sink = [[[0.2 if how == "topk" else 0.1] * 10]]
        seen = {"title": TITLE, "measures": {"sink": sink, "reading": [[own.tolist()]]}}
        unseen = {"title": TITLE, "measures": {"sink": sink, "reading": [[[float("nan")] * 10]]}}
        return {"heads": [seen, unseen]}

    above, table, _ = results("topk-sft", found).sft_helps().found
    assert (
        "each of 4 trainings moves: the weight on slot 0 changes by +0.000 to +0.100" in above.text
    )
    still, gained = ["0.100", "0.100", "+0.000 [+0.000, +0.000]"], ["0.100", "0.200", "+0.100 [+0.100, +0.100]"]  # fmt: skip
    assert table.rows == [
        ["reference", TITLE, "densely", *still, "8.0 of 8", "0.55", "0.55"],
        ["reference", TITLE, "at 1%", *gained, "6.0 of 8", "0.55", "0.35"],
        ["reference", TITLE, "densely", *still, "no head is seen to read", "", ""],
        ["reference", TITLE, "at 1%", *gained, "no head is seen to read", "", ""],
    ]


def test_entropy_is_a_row_for_each_training(results: Any):
    """Of three seeds, half a nat lower than densely trained, give or take a little."""
    loss = np.random.default_rng(0).random((2, 2, 3)) / 2

    def found(how: str, seed: int) -> dict[str, Any]:
        lower = 0.5 + 0.02 * (seed - 1) if how == "topk" else 0.0
        measures = {"entropy": 3 + loss - lower, "relative entropy": loss, "mass at 1%": 1 - loss}
        told = {name: values.tolist() for name, values in measures.items()}
        return {"heads": [{"title": TITLE, "measures": told}]}

    answer = results("entropy", found).entropy_falls()
    assert answer.verdict == "supported"
    assert answer.on == ["`results/entropy`: `topkit study entropy --model reference --corpus BOOKS --task kv-recall --length 64 --out runs/entropy`"]  # fmt: skip
    above, changed, told, ordered, _ = answer.found
    assert "by -0.50 nats: lower in 1 of 1 pairs" in above.text
    before = f"{3 + loss.mean():.2f}"
    assert changed.rows == [
        ["reference", TITLE, "densely", before, "+0.00 [+0.00, +0.00]", "", ""],
        ["reference", TITLE, "at 1%", before, "-0.50 [-0.55, -0.45]", "-0.50 [-0.55, -0.45]", "lower"],
    ]  # fmt: skip
    # Entropy orders heads as their loss does, by design.
    assert "+1.00 of its entropy" in told.text
    assert [row[2:5] for row in ordered.rows] == [["not yet", "6", "1%"], ["at 1%", "6", "1%"]]
