"""The tables of docs/claims.md: rows are what was computed, and each sentence says what its table shows."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topkit.experiments.study.blocks import Paragraph, Table
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import Equality
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.predictors import predicted
from topkit.experiments.study.reading import load_study
from topkit.experiments.study.sentences import said
from topkit.experiments.study.stats import Interval

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "claims.md").read_text()
RESULTS = ROOT / "results"
Rows = list[dict[str, str]]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of tools/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


def tables(page: str) -> list[tuple[str, Rows]]:
    """Each table of a page, with the paragraph above it."""
    found = re.findall(r"([^\n]+)\n\n((?:\|[^\n]+\n)+)", page)
    made = list[tuple[str, Rows]]()
    for above, text in found:
        head, _, *rows = ([x.strip() for x in line.strip("|").split("|")] for line in text.split("\n")[:-1])  # fmt: skip
        made.append((above, [dict(zip(head, row, strict=True)) for row in rows]))
    return made


def section(name: str) -> list[tuple[str, Rows]]:
    return tables(PAGE.split(f"\n## {name}: ")[1].split("\n## ")[0] + "\n")


def value(cell: str) -> float:
    return float(re.match(r"[+-]?[\d.]+", cell)[0])  # type: ignore[index]


def low(cell: str) -> float:
    """The lower end of a difference's interval."""
    return float(re.findall(r"[+-][\d.]+", cell)[1])


def test_no_list_of_numbers_is_long_and_each_table_has_a_sentence_with_numbers():
    for text in PAGE.split("\n## ")[1:]:
        for lines in re.findall(r"(?:^- [^\n]+\n)+", text, re.MULTILINE):
            assert lines.count("\n") <= 4
        for above, rows in tables(text + "\n"):
            assert not above.startswith("- ") and above.endswith(".") and re.search(r"\d", above)
            assert rows


@pytest.mark.parametrize("protocol", ["answer", "question"])
def test_rows_of_exact_top_k_are_the_means_of_its_haystacks(protocol: str):
    _, rows = section(f"Exact Top-k decoding equals full attention: from the {protocol} on")[0]
    own, made = [row for row in rows if row["model"] == "smollm2"], 0
    for curve in load_study(RESULTS / "exact-topk-smollm2"):
        scores = curve.rates @ curve.questions / curve.questions.sum()
        at = {(cell.name, str(cell.budget)): n for n, cell in enumerate(curve.cells)}
        for row in own:
            if (row["task"], protocol) == (curve.task, curve.sparse_from):
                dense, exact = at["dense", "None"], at["exact()", row["k/N"].replace(".0", "")]
                assert row["full attention"].startswith(f"{scores[dense]:.3f} [")
                assert row["exact Top-k"].startswith(f"{scores[exact]:.3f} [")
                assert row["difference"].startswith(f"{scores[exact] - scores[dense]:+.3f} [")
                assert row["run; needed"].partition(";")[0] == f"{len(curve.haystacks):,}"
                made += 1
    assert made == len(own) > 0


@pytest.mark.parametrize("protocol", ["answer", "question"])
def test_the_sentence_on_exact_top_k_says_what_its_rows_show(protocol: str):
    above, rows = section(f"Exact Top-k decoding equals full attention: from the {protocol} on")[0]
    gaps = [value(row["difference"]) for row in rows]
    highs = [float(re.findall(r"[+-][\d.]+", row["difference"])[2]) for row in rows]
    still = [
        re.findall(r"[\d,]+", row["run; needed"]) for row in rows if row["verdict"] == "undecided"
    ]
    words = [row["verdict"] for row in rows]
    assert f"{len(rows)} comparisons" in above
    assert all(f"{words.count(word)} {word}" in above for word in set(words))
    assert f"in {sum(high < 0 for high in highs)} the interval lies below nought" in above
    assert f"from {min(gaps):+.3f} [" in above and f" to {max(gaps):+.3f} [" in above
    ran, needed = ([int(one[n].replace(",", "")) for one in still if len(one) > n] for n in (0, 1))
    for counts, what in ((needed, "haystacks would show it"), (ran, "were run")):
        ends = dict.fromkeys(f"{end(counts):,}" for end in (min, max))
        assert f" {' to '.join(ends)} {what}" in above


@pytest.mark.parametrize("protocol", ["answer", "question"])
def test_exact_top_k_with_fewer_keys_has_a_row_a_curve_and_what_was_not_run_is_said(protocol: str):
    name = f"Exact Top-k decoding equals full attention: from the {protocol} on"
    above, rows = section(name)[1]
    gaps = {(row["task"], k): row[k] for row in rows for k in ("0.4%", "0.8%", "1.6%") if row["model"] == "smollm2"}  # fmt: skip
    worse = sum(float(re.findall(r"[+-][\d.]+", row[k])[2]) < -0.01 for row in rows for k in ("0.4%", "0.8%", "1.6%"))  # fmt: skip
    assert f"{worse} of {3 * len(rows)} are worse" in above
    curves = load_study(RESULTS / "exact-topk-smollm2")
    for curve in curves:
        scores = curve.rates @ curve.questions / curve.questions.sum()
        at = {(cell.name, str(cell.budget)): n for n, cell in enumerate(curve.cells)}
        if curve.sparse_from == protocol:
            for k in ("0.4%", "0.8%", "1.6%"):
                gap = scores[at["exact()", k]] - scores[at["dense", "None"]]
                assert gaps.pop((curve.task, k)).startswith(f"{gap:+.3f} [")
    assert not gaps
    absent = {one.task for one in curves} - {one.task for one in curves if one.sparse_from == protocol}  # fmt: skip
    text = PAGE.split(f"\n## {name}: ")[1].split("\n## ")[0]
    assert text.count("Not run: ") == len(absent)
    assert all(f"Not run: smollm2, {task}," in text for task in absent)


def test_the_sentence_on_manners_of_loss_says_what_its_rows_show():
    above, rows = section("Accuracy rises with the precision of Top-k: in one manner of loss")[0]
    by_manner = [[cell for cell in list(row.values())[2:] if cell] for row in rows]
    cells = [cell for own in by_manner for cell in own]
    assert f"of {len(cells)} differences {sum(low(cell) > 0 for cell in cells)} are shown" in above
    gaps = [value(cell) for cell in cells]
    assert f"from {min(gaps):+.2f} [" in above and f"to {max(gaps):+.2f} [" in above
    for row, own in zip(rows, by_manner, strict=True):
        shown = all(low(cell) > 0 for cell in own)
        assert (row["manner of loss"] in above.partition("Not shown:")[2]) != shown


def test_of_a_manner_of_loss_the_precisions_stand_beside_it(tool: Any):
    precision = tool("precision_claims")
    ends = "degraded(precision=0.5, miss=page)", "degraded(precision=0.95, miss=page)"
    assert precision._manner(*ends) == ("degraded(miss=page)", "0.5 to 0.95")
    assert precision._manner("degraded(precision=0.5)", "degraded(precision=0.9)") == ("degraded()", "0.5 to 0.9")  # fmt: skip


def test_what_errs_least_is_the_least_of_its_setting(tool: Any):
    """Of metrics alone: the others' mean and the nulls are what metrics are held against."""

    def errs(**by: float) -> dict[str, Interval]:
        return {name: Interval(np.array(x), np.array(0.0), np.array(1.0)) for name, x in by.items()}

    mean = errs(recall=0.2, mass=0.1) | {"the others' mean": errs(x=0.05)["x"]}
    words = tool("precision_claims")._of_errors([errs(recall=0.3, mass=0.2, ws=0.1), mean, mean])
    assert "errs least is `mass` in 2, `ws` in 1 of 3 settings (`ws` was recorded in 1)." in words


def test_rows_of_predictors_are_their_errors_by_setting():
    (_, ordered), (_, rows) = section("Accuracy rises with the precision of Top-k: from method to method")  # fmt: skip
    assert [row["setting"] for row in ordered] == [str(n + 1) for n in range(len(ordered))]
    curve = load_study(RESULTS / "precision")[0]
    found = {one.name: one.real for one in predicted(Findings(curve)) if one.real is not None}
    assert {row["predicted from"].strip("`"): row["setting 1"] for row in rows if row["setting 1"]} == {name: said(gap) for name, gap in found.items()}  # fmt: skip


@pytest.fixture
def curve() -> Curve:
    """Of a label that nobody counted, so that it is taken for the truth."""
    return replace(load_study(RESULTS / "exact-topk-smollm2")[0], model="m", tokens=np.zeros(0))


def test_what_all_rows_have_alike_stands_above_the_table(tool: Any, curve: Curve):
    made = tool("claimed").by_setting
    longer = replace(curve, length=2 * curve.length)
    above, table = made("A sentence.", ["k"], [(curve, ["1"]), (longer, ["2"])])
    assert above == Paragraph(f"A sentence. All rows: sparse from the {curve.sparse_from}.")
    assert table == Table(
        ["model", "task", "tokens", "k"],
        [["m", curve.task, "4,096", "1"], ["m", curve.task, "8,192", "2"]],
    )
    above, table = made("A sentence.", ["k"], [(curve, ["1"])])
    assert above == Paragraph("A sentence.")
    assert table == Table(["model", "task", "tokens", "sparse from", "k"], [["m", curve.task, "4,096", curve.sparse_from, "1"]])  # fmt: skip


def test_a_task_whose_prompts_are_shorter_says_so_in_its_row(tool: Any, curve: Curve):
    short = replace(curve, tokens=np.array([500.0, 700.0]))
    (_, table) = tool("claimed").by_setting("A sentence.", [], [(short, [])])
    assert table.rows[0][2] == "4,096 (500 to 700 in truth)"


def test_haystacks_are_planned_of_what_is_undecided_alone(tool: Any):
    claimed, zero = tool("claimed"), np.zeros(())
    gap = Interval(zero, zero, zero)
    found = [Equality(gap, "undecided", 90, 1208), Equality(gap, "undecided", 64, None), Equality(gap, "equal", 5000)]  # fmt: skip
    assert [claimed.planned(one) for one in found] == ["90; 1,208", "64; more than can be run", "5,000"]  # fmt: skip
    assert "about 1,208 haystacks would show it" in claimed.plans(found)
    assert "64 to 90 were run" in claimed.plans(found)
    assert "no number that can be run would show it" in claimed.plans(found[1:])
    assert claimed.plans(found[2:]) == ""
    assert claimed.tally(["b", "a", "b"]) == "2 b, 1 a"
    assert claimed.span([3000, 20]) == "20 to 3,000" and claimed.span([0.021, 0.019], ".2f") == "0.02"  # fmt: skip


def test_the_law_has_a_row_for_a_third_model(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The rows of another model under the name that the law keeps for the end: in each table of the law."""
    law, committed = tool("law_claims"), tool("committed")
    for name in ("law", "law-third"):
        shutil.copytree(RESULTS / "law-quick", tmp_path / name)
    third = tmp_path / "law-third"
    study = json.loads((third / "study.json").read_text())
    (third / "study.json").write_text(json.dumps({**study, "study": "law-third", "model": "third/model"}))  # fmt: skip
    run = json.loads((third / "run.json").read_text())
    note = {"law": study["law"]["sha256"], "run": run["id"], "weights": run["identity"]["weights"], "folder": "law-third", "date": "2026-01-01"}  # fmt: skip
    (tmp_path / "answer-key-kept.json").write_text(json.dumps(note))
    for module in (law, committed):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    answer = law.law()
    assert answer.on[1].startswith("`results/law-third`: `topkit study law-third ")
    verdicts, rivals, reading = (block for block in answer.found if isinstance(block, Table))
    assert [row[0] for row in verdicts.rows] == ["reference"] * 2 + ["third/model"] * 2  # fmt: skip
    for table, own in ((verdicts, 2), (rivals, 1), (reading, 1)):
        first, last = table.rows[:own], table.rows[-own:]
        assert [row[1:] for row in last] == [row[1:] for row in first]
    assert any("2 models: 2 undecided" in block.text for block in answer.found if isinstance(block, Paragraph))  # fmt: skip


def test_without_results_nothing_is_claimed(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    claims = tool("claims")
    for name in ("committed", "law_claims", "trained_claims"):
        monkeypatch.setattr(tool(name), "RESULTS", tmp_path)
    for claim in claims.CLAIMS:
        answer = claim.answer()
        own = claim.name.startswith(("Total variation", "Index keys of fp4"))
        assert own or (answer.verdict, list(answer.on), list(answer.found)) == ("not run yet", [], [])  # fmt: skip
        text = claims._section(claim, answer)
        assert own or f"- **On**: nothing yet.\n- `{claim.command}` answers it" in text
