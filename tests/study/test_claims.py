"""docs/claims.md: made from results, each finding with its source and a verdict that its numbers allow."""

from __future__ import annotations

import importlib
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
    longer = tools.exact_claims.longer_contexts()
    low, high = map(float, re.search(r"\[(\S+), (\S+)\]\.", longer.found[0].text).groups())  # type: ignore[union-attr]
    assert longer.verdict == ("undecided" if low < 0 < high else "supported" if high < 0 else "not supported")  # fmt: skip
    assert tools.exact_claims.there("no such results") == []


def test_numbers_name_the_command_that_repeats_them(tools: Any):
    """The study that results are of, with what was asked otherwise than its file says."""
    names = ["fidelity-vs-accuracy", "smollm2", "exact-topk-smollm2", "precision"]
    assert tools.exact_claims.folders(names) == [
        "`results/fidelity-vs-accuracy`: `topkit study full --out runs/fidelity-vs-accuracy`",
        "`results/smollm2`: `topkit study smollm2 --task niah-single:wording=code --out runs/smollm2`",
        # A task that the pilot left out is not to be named, nor the lengths that the study gives its tasks.
        "`results/exact-topk-smollm2`: `topkit study exact-topk --model smollm2 --samples 1250 --out runs/exact-topk-smollm2`",
        "`results/precision`: `topkit study precision --model reference --samples 48 --out runs/precision`",
    ]
    named = re.findall(r"`results/[\w-]+`(.{16})", PAGE)
    assert len(named) > 10 and set(named) == {": `topkit study "}


@pytest.mark.slow
def test_the_page_is_current():
    check = [sys.executable, ROOT / "tools" / "claims.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
