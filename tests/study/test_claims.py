"""docs/claims.md: made from results, each finding with its source and a verdict that its numbers allow."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "claims.md").read_text()


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    claims = importlib.import_module("claims")

    return claims


def test_every_finding_has_a_section_a_source_and_a_verdict(tools: Any):
    words = ("supported", "not supported", "undecided", "not run yet")
    sections = dict(re.findall(r"^## (.+): ([a-z ]+)$", PAGE, re.MULTILINE))
    assert list(sections) == [claim.name for claim in tools.CLAIMS]
    assert set(sections.values()) <= set(words)
    for claim in tools.CLAIMS:
        assert f"| {claim.name} | {claim.source} | **{sections[claim.name]}** |" in PAGE
    for source in ("2512.03494", "2512.07647", "2504.17768", "2605.06763", "2605.16928", "2602.11162", "26209", "27059"):  # fmt: skip
        assert source in PAGE
    assert "HELMET and LongBench v2" in PAGE and "**not run**" in PAGE


def test_what_was_not_run_names_the_command_that_answers_it(tools: Any):
    from topkit.experiments.study.preset_files import names

    for claim in tools.CLAIMS:
        name = re.fullmatch(r"topkit study ([\w-]+).*", claim.command)
        assert name is None or name[1] in names()
        section = PAGE.split(f"\n## {claim.name}: ")[1].split("\n## ")[0]
        if section.startswith("not run yet") and claim.command:
            assert f"`{claim.command}` answers it" in section


def test_verdicts_follow_the_intervals(tools: Any):
    """Of cheap ones; the whole page is made anew by the slow test."""
    longer = tools.claimed.longer_contexts()
    low, high = map(float, re.search(r"\[(\S+), (\S+)\]$", longer.numbers[-1]).groups())  # type: ignore[union-attr]
    assert longer.verdict == ("undecided" if low < 0 < high else "supported" if high < 0 else "not supported")  # fmt: skip
    assert tools.claimed.there("no such results") == []


def test_numbers_name_the_command_that_repeats_them(tools: Any):
    """The study that results are of, with what was asked otherwise than its file says."""
    said = tools.claimed.folders(["fidelity-vs-accuracy", "smollm2"])
    assert said == "`results/fidelity-vs-accuracy` (`topkit study full --out runs/fidelity-vs-accuracy`), `results/smollm2` (`topkit study smollm2 --task niah-single:wording=code --out runs/smollm2`)"  # fmt: skip
    for on in re.findall(r"^- \*\*On\*\*: (.+)\.$", PAGE, re.MULTILINE):
        for name in re.findall(r"`results/([\w-]+)`(?! \(`topkit study )", on):
            raise AssertionError(f"{name} is named without its command")


@pytest.mark.parametrize(
    ("high", "verdict"), [(0.3, "supported"), (-0.1, "not supported"), (0.0, "undecided")]
)
def test_training_through_top_k_is_judged_over_paired_seeds(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, high: float, verdict: str
):
    """Of three seeds, each `high` above its dense training, give or take a little."""
    trained = importlib.import_module("trained_claims")
    folder, names = tmp_path / "topk-sft", list[str]()
    (folder / "models").mkdir(parents=True)
    arms = [("before", "", 0), *((how, "1%" if how == "topk" else "", n) for how in ("dense", "topk") for n in range(3))]  # fmt: skip
    for how, ratio, seed in arms:
        rate = 0.5 + 0.01 * seed + (high + 0.02 * (seed - 1) if how == "topk" else 0)
        curve = {"title": "t", "cells": ["dense", "1%"], "rates": [[0.9, 0.9], [rate, rate]], "questions": [4, 4], "length": 64}  # fmt: skip
        arm = {"start": "reference", "attention": how, "ratio": ratio, "seed": seed}
        names.append(f"{how}-{seed}.json")
        (folder / trained.PARTS / names[-1]).parent.mkdir(exist_ok=True)
        (folder / trained.PARTS / names[-1]).write_text(json.dumps({"arm": arm, "curves": [curve], "heads": []}))  # fmt: skip
    said = {"study": "topk-sft", "model": "reference", trained.PARTS: names}
    (folder / "study.json").write_text(json.dumps(said))
    for module in (trained, importlib.import_module("committed")):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    answer = trained.sft_helps()
    assert answer.verdict == verdict and f"{high:+.2f}" in answer.numbers[0]


@pytest.mark.slow
def test_the_page_is_current():
    check = [sys.executable, ROOT / "tools" / "claims.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
