"""The first screen of a report: the answer, the indexers to choose from, the main figure; and all settings in a table."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from topkit.experiments.study.answer import Answer
from topkit.experiments.study.captions import CAPTIONS, alt_of
from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.cost_words import at_cost
from topkit.experiments.study.curve import settings_of
from topkit.experiments.study.figures import by_cost
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.section import lines_of
from topkit.experiments.study.sentences import BETTER, FLOOR, GOOD, UNDECIDED, WORSE, said
from topkit.experiments.study.sheet import Sheet, Shown

# How a verdict is coloured; its word says it too.
_TONES = {GOOD: "good", BETTER: "open", UNDECIDED: "open", FLOOR: "open", WORSE: "bad"}


@dataclass(frozen=True)
class Choice:
    """A row of the first table."""

    row: Row
    cost: str
    verdict: str
    settings: str
    tone: str


@dataclass(frozen=True)
class Screen:
    """What the first screen shows of a model."""

    model: str
    sentence: str
    level: str
    settings: str
    k: str
    choices: list[Choice]
    exact: float | None
    margin: float
    figure: Shown | None


def first_screen(answer: Answer, sheet: Sheet, names: Sequence[str], rows: Mapping[int, list[Row]]) -> Screen:  # fmt: skip
    """The answer of a model; where it is of one setting, its figure shares that setting's rows."""
    findings, curve = answer.findings, answer.findings.curve
    cells = rows.get(id(curve), answer.rows)
    slug = "-".join(filter(None, ("answer", curve.slug if curve.model else "")))
    figure = None
    if any(row["share"] is not None and row["accuracy"] is not None for row in answer.shown):
        figure = Shown(slug, CAPTIONS["cost"], alt_of("cost", answer.shown, answer.budget))
        data = {"cells": cells, "lines": lines_of(findings)}
        sheet.show(figure, "cost", partial(by_cost, names), data, answer.budget)
    haystacks = len(curve.haystacks)
    over = f"{len(answer.each)} settings, {haystacks} haystacks in all" if len(answer.each) > 1 else f"{curve.setting}, {haystacks} haystacks"  # fmt: skip
    return Screen(
        curve.model,
        answer.sentence(),
        answer.level(),
        over,
        answer.budget,
        [_choice(row, answer) for row in answer.chosen()],
        None if answer.exact is None else answer.exact["accuracy"],
        findings.margin,
        figure,
    )


def _choice(row: Row, answer: Answer) -> Choice:
    if row["kind"] == "exact":
        return Choice(row, "1" if row["share"] else "", "the measure", "", "")
    words, share = row["verdict"] or "not compared", row["share"]
    if row["gap"] is not None:
        words += f" ({row['gap']:+.3f})"
    settings = answer.settings(row["name"]) if len(answer.each) > 1 else ""
    cost = "" if share is None else f"{share:.2f}"
    return Choice(row, cost, words, settings, _TONES.get(row["verdict"], ""))


def overview(all_findings: Sequence[Findings], rows: Mapping[int, list[Row]]) -> list[list[str]]:
    """A row a setting: what full attention and exact Top-k score, the cheapest that holds, the verdicts."""
    table: list[list[str]] = []
    settings = settings_of([of.curve for of in all_findings])
    for of, setting in zip(all_findings, settings, strict=True):
        answer, dense = Answer(of, (of,)), of.curve.place(None)
        exact = of.exact.get(of.budget)
        held = answer.holding
        verdicts = [row["verdict"] for row in answer.real]
        table.append(
            [
                setting,
                answer.budget,
                "" if dense is None else said(of.accuracy[dense]),
                "" if exact is None else said(of.accuracy[exact]),
                f"`{held[0]['name']}`{at_cost(held[0]['share'])}" if held else "none shown",
                str(sum(v in (GOOD, BETTER) for v in verdicts)),
                str(verdicts.count(WORSE)),
                str(sum(v.startswith(UNDECIDED) for v in verdicts)),
            ]
        )
    return table
