"""The answer of a report follows the numbers, and says that nothing is shown where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from known_study import WHOLE, tables, with_accuracy, write
from topkit.experiments.runs.cells import DENSE
from topkit.experiments.study import pictures
from topkit.experiments.study.answer import Answer, answers
from topkit.experiments.study.cost_words import at_cost
from topkit.experiments.study.curves import curves
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.pictures import Pictures
from topkit.experiments.study.report import write_report
from topkit.experiments.study.sentences import GOOD


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictures, "add", lambda *_: None)
    monkeypatch.setattr(pictures, "FEWEST", 10**6)


def answer(table: pa.Table, margin: float = 0.1, task: str = "") -> Answer:
    return answers([Findings(one, margin) for one in curves(table, tables(haystacks=2)[1])])[0]


def scored(scores: dict[str, float], rest: float, haystacks: int = 64) -> pa.Table:
    """Everything of a cell scores the same on every haystack."""
    table, _ = tables(haystacks=haystacks)
    return with_accuracy(table, lambda rows: [scores.get(r["indexer"], rest) for r in rows])


def test_the_cheapest_that_holds_is_named_with_its_cost_and_recall_is_told_to_mislead() -> None:
    held = {DENSE: 1.0, "exact()": 1.0, "sign()": 1.0, WHOLE: 1.0}
    words = answer(scored(held, 0.2)).sentence()
    assert words.startswith(
        "`sign()` answers as exact Top-k does (within 0.1, k = 32) at 1/32 of the bytes"
    )
    assert words.endswith("recall alone misleads: a recall of 0.97 can fail, one of 0.42 can pass.")
    chosen = answer(scored(held, 0.2)).chosen()
    assert [row["name"] for row in chosen[:2]] == ["exact Top-k", "sign()"] and len(chosen) == 5
    assert chosen[1]["verdict"] == GOOD


@pytest.mark.parametrize(
    ("scores", "rest", "haystacks", "words"),
    [
        ({DENSE: 1.0, "exact()": 1.0}, 0.0, 64, "Every one of 12 indexers answers worse than exact Top-k at k = 32"),
        ({DENSE: 1.0, "exact()": 0.0}, 0.0, 64, "Nothing is shown: exact Top-k itself scores 0.00 at k = 32"),
        ({DENSE: 1.0, "exact()": 0.5}, 0.5, 2, "2 haystacks leave 12 undecided"),
    ],
)  # fmt: skip
def test_where_nothing_holds_it_says_so(
    scores: dict[str, float], rest: float, haystacks: int, words: str
) -> None:
    assert words in answer(scored(scores, rest, haystacks)).sentence()


def test_the_level_says_from_which_k_on_exact_top_k_is_enough() -> None:
    def grown(rows: list[dict[str, Any]]) -> list[float]:
        return [1.0 if r["indexer"] == DENSE or int(r["budget"]) >= 16 else 0.3 for r in rows]

    table, _ = tables(haystacks=64)
    words = answer(with_accuracy(table, grown)).level()
    assert "exact Top-k is shown as good as full attention (within 0.1) from k = 16 on" in words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, ""), (0.0, " and reads nothing to choose"), (1 / 7, " at a seventh of the bytes"),
        (0.5, " at half of the bytes"), (0.13, " at about an eighth of the bytes"), (0.72, " at 72% of the bytes"),
        (1 / 32, " at 1/32 of the bytes"), (1.0, " at the same bytes"),
    ],
)  # fmt: skip
def test_costs_in_words(share: float | None, words: str) -> None:
    assert at_cost(share) == words


def test_several_settings_have_one_answer_that_counts_them() -> None:
    held = {DENSE: 1.0, "exact()": 1.0, "sign()": 1.0}
    one = scored(held, 0.2)
    other = scored({**held, "sign()": 0.0}, 0.2)
    rows = [*one.to_pylist(), *({**row, "task": "other"} for row in other.to_pylist())]
    found = answer(pa.Table.from_pylist(rows, one.schema))
    assert found.settings("sign()") == "as good in 1 of 2 settings, worse in 1"
    assert len(found.findings.curve.haystacks) == 128 and "`sign()`" not in found.sentence()


CASES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "one haystack": lambda rows: [row for row in rows if row["haystack"] == 0],
    "all right": lambda rows: [row | {"exact_match": 1.0} for row in rows],
    "all wrong": lambda rows: [row | {"exact_match": 0.0} for row in rows],
    "no numbers": lambda rows: [
        row | dict.fromkeys(("recall", "mass", "bytes_read", "nll", "kl"), float("nan"))
        for row in rows
    ],
    "full attention alone": lambda rows: [row for row in rows if row["indexer"] == DENSE],
    "exact Top-k alone": lambda rows: [r for r in rows if r["indexer"] in (DENSE, "exact()")],
    "without full attention": lambda rows: [row for row in rows if row["indexer"] != DENSE],
    "without exact Top-k": lambda rows: [row for row in rows if row["indexer"] != "exact()"],
    "partial": lambda rows: [r for r in rows if r["indexer"] != "sign()" or r["haystack"] < 1],
}
SAID = {
    "one haystack": "[one haystack]",
    "all wrong": "no loss of 0.05 could show",
    "full attention alone": "No indexer was run: nothing is shown of any",
    "exact Top-k alone": "exact Top-k shown as good as full attention",
    "without exact Top-k": "exact Top-k was not run at k = 32",
    "partial": "haystacks were left out, unfinished",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bad_runs_have_a_page_that_says_so(case: str, tmp_path: Path) -> None:
    table, heads = tables(haystacks=3)
    rows = CASES[case](table.to_pylist())
    page = write_report(
        write(tmp_path, pa.Table.from_pylist(rows, table.schema), heads)
    ).read_text()
    said = page.replace("&#39;", "'")
    assert SAID.get(case, "What this does not show") in said
    assert "nan" not in said.split("<body>")[1].split("<script")[0].lower().replace("nanosec", "")
