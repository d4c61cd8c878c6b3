"""The leaderboard of a study: ranks, families, Pareto fronts and surprises, as a page and as Markdown."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from topkit.experiments.study import board_figures as figures
from topkit.experiments.study.block_page import write_page
from topkit.experiments.study.blocks import (
    Block,
    Drawn,
    Heading,
    Items,
    Panel,
    Paragraph,
    as_markdown,
)
from topkit.experiments.study.board_tables import (
    MORE_NOTE,
    beyond,
    families,
    front_line,
    table,
)
from topkit.experiments.study.citation import citation
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import families as families_of
from topkit.experiments.study.goals import ACCURACY
from topkit.experiments.study.ranks import least_haystacks
from topkit.experiments.study.reading import RUNS, STUDY, Reading, reading, study_of
from topkit.experiments.study.standings import Standings, standings
from topkit.experiments.study.surprises import surprises

NAME = "leaderboard"
TITLE = "Published selectors at equal bytes"
HOW = (
    "A recipe's score on a haystack is its mean over k; its score is the mean over haystacks. Ranks admit ties: of "
    "all pairs in a table the differences per haystack are tested (Student's paired test; by accuracy never below "
    "2^(1-m), m haystacks differing), with Holm's correction, so that of recipes alike in truth any two are said to differ in "
    "at most 5 % of studies. `1 to 5` means: none is shown to be better than it, and it than all but four. A family "
    "stands by its best recipe, chosen on a third of the haystacks and scored on the others: a weak relative takes "
    "nothing from it, and the best of many is not flattered by its own haystacks."
)


def write_leaderboard(folder: Path, read: Reading, place: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, leaderboard.md and figures into a folder; returns the report's path.

    place: the study's folder, whose study.json, and those of its runs, say how each recipe ran.
    """
    return write_blocks(folder, TITLE, NAME, list(blocks(read, place, study)), read)


def write_blocks(folder: Path, title: str, name: str, made: Sequence[Block], read: Reading) -> Path:
    """Write a page's blocks, and what its runs say, as report.html and NAME.md; returns the report's path."""
    notes = [*read.origin, *(f"Not finished: {line}" for line in read.absent)]
    cite = citation(read.described, [folder])
    return write_page(folder, name, title, [*made, Heading("The run"), Items(notes)], cite)


def markdown_of(run: Path, figures: str, level: int = 2) -> str:
    """A run's leaderboard as Markdown; figures: the path from the page to the folder of its figures."""
    study = study_of(run / STUDY)
    return as_markdown(blocks(reading([run], study), run, study, level), figures)


def boards_of(read: Reading, place: Path, study: Mapping[str, Any]) -> list[list[Standings]]:
    """The standings of each model."""
    if RUNS not in study:
        return [standings(str(study.get("model", "a model")), read.curves, study)]
    models: dict[str, str] = {}
    for one in study[RUNS]:
        models.setdefault(str(one["model"]), str(one["folder"]))
    made: list[list[Standings]] = []
    for model, folder in models.items():
        # As `reading` names them: by their folder where there are several.
        name = folder.partition("/")[0] if len(models) > 1 else ""
        curves = [curve for curve in read.curves if curve.model == name]
        if curves:
            made.append(standings(name or model, curves, study_of(place / folder / STUDY)))
    return made


def blocks(read: Reading, place: Path, study: Mapping[str, Any], level: int = 2) -> Iterator[Block]:
    """The page's blocks; headings begin at a level."""
    models = [boards for boards in boards_of(read, place, study) if boards]
    yield Heading("Surprises", level)
    yield Items(surprises([board for boards in models for board in boards]))
    yield Heading("How to read it", level)
    yield Paragraph(HOW)
    for boards in models:
        curves = [curve for curve in read.curves if curve.setting in boards[0].settings]
        yield from of_model(boards, _lead(boards[0], curves), level)


def of_model(boards: Sequence[Standings], lead: str, level: int) -> Iterator[Block]:
    """The blocks of one model's boards; lead: what they are of."""
    first = boards[0]
    yield Heading(first.model, level)
    yield Paragraph(lead)
    slug = "".join(c if c.isalnum() or c in ".-" else "-" for c in first.model)
    if first.goals:
        yield _by_bytes(boards, f"leaderboard-by-bytes-{slug}")
    if first.goals and len(first.ks) > 1:
        yield _by_k(boards, f"leaderboard-by-k-{slug}")
    yield Heading(f"Pareto fronts, {first.model}", level + 1)
    yield Items([line for goal in figures.goals_of(boards) if (line := front_line(boards, goal))])
    for board in boards:
        yield Heading(_title(board), level + 1)
        if too_few := _too_few_for_recipes(board):
            yield Paragraph(too_few)
        yield table(board)
        if beyond(board):
            yield Paragraph(MORE_NOTE)
        if board.left_out:
            yield Paragraph(f"Not there: {'; '.join(board.left_out)}.")
    yield Heading(f"Families, {first.model}", level + 1)
    if too_few := _too_few_for_families(boards):
        yield Paragraph(too_few)
    yield families(boards)


def _by_bytes(boards: Sequence[Standings], name: str) -> Drawn:
    goals = figures.goals_of(boards)
    rows = {goal: figures.board_rows(boards, goal) for goal in goals}
    names = families_of([row for its in rows.values() for row in its])
    panels = [
        Panel(f"{name}-{goal}", f"{name}-{goal}", partial(figures.by_bytes, names, goal), {"cells": rows[goal]},
              f"{boards[0].model}: {goal} against bytes. {front_line(boards, goal)}")
        for goal in goals
    ]  # fmt: skip

    def draw() -> alt.TopLevelMixin:
        return alt.vconcat(*(figures.by_bytes(names, goal, True, goal) for goal in goals))

    return Drawn(name, draw, rows, f"{boards[0].model}. {figures.CAPTION}", panels)


def _by_k(boards: Sequence[Standings], name: str) -> Drawn:
    goals, ks = figures.goals_of(boards), boards[0].ks
    rows = {(goal, n): figures.board_rows(boards, goal, n) for goal in goals for n in range(len(ks))}  # fmt: skip
    names = families_of([row for its in rows.values() for row in its])
    panels = [
        Panel(f"{name}-{goal}-{ks[n]}", f"{name}-{goal}", partial(figures.at_k, names, goal), {"cells": its},
              f"{boards[0].model}, k = {ks[n]}: {goal} against bytes.")
        for (goal, n), its in rows.items()
    ]  # fmt: skip

    def draw() -> alt.TopLevelMixin:
        return alt.vconcat(*(figures.by_k(names, goal, ks, True) for goal in goals))

    data = {goal: [row for n in range(len(ks)) for row in rows[goal, n]] for goal in goals}
    return Drawn(name, draw, data, f"{boards[0].model}. {figures.BY_K}", panels)


def _lead(board: Standings, curves: Sequence[Curve]) -> str:
    dense = [c.rates[p] @ c.questions / c.questions.sum() for c in curves if (p := c.place(None)) is not None]  # fmt: skip
    exact = ", ".join(
        f"{value:.2f} at k = {k}" for value, k in zip(board.exact[ACCURACY], board.ks, strict=True)
    ) if board.exact else "not run"  # fmt: skip
    full = f"{np.mean(dense):.2f}" if dense else "not run"
    return (
        f"{'; '.join(board.settings)}; {board.haystacks} haystacks; k = {', '.join(board.ks)}. Accuracy of full "
        f"attention: {full}; of exact Top-k: {exact}."
    )


def _too_few_for_recipes(board: Standings) -> str:
    goal = board.goals.get(ACCURACY)
    return "" if goal is None else _too_few("recipes", len(goal.places), goal.haystacks)


def _too_few_for_families(boards: Sequence[Standings]) -> str:
    """Of the board with most families: what its haystacks can tell apart, those of the others can."""
    goals = [board.goals[ACCURACY] for board in boards if ACCURACY in board.goals]
    goal = max(goals, key=lambda goal: len(goal.families), default=None)
    return "" if goal is None else _too_few("families", len(goal.families), goal.family_haystacks)


def _too_few(what: str, ranked: int, haystacks: int) -> str:
    """That no ranks by accuracy could come apart, where too few haystacks rank so many."""
    least = least_haystacks(ranked)
    if ranked < 2 or haystacks >= least:
        return ""
    return (
        f"Accuracy ranks nobody here: of {ranked} {what} no two can be told apart on the {haystacks} haystacks that rank "
        f"them, whatever they score; Holm's correction over {ranked * (ranked - 1) // 2} pairs asks for {least} that differ, "
        "all one way."
    )


def _title(board: Standings) -> str:
    if not board.bytes:
        return f"{board.model}, as written"
    return f"{board.model}, {board.bytes}: {board.budget:.4g} bytes a token and layer"
