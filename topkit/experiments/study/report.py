"""The report of a run: one HTML file that needs nothing else, and its figures as PNG and SVG."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topkit.documents import path_of
from topkit.errors import InputError, NoRows
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.aims import checks
from topkit.experiments.study.answer import answers
from topkit.experiments.study.blocks import in_page
from topkit.experiments.study.captions import METHOD, NOT_SHOWN, TWO_MODELS
from topkit.experiments.study.citation import citation
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import families
from topkit.experiments.study.empty_page import write_empty
from topkit.experiments.study.equal_recipes import LEADERBOARD
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.first_screen import first_screen, overview
from topkit.experiments.study.heads_page import write_heads
from topkit.experiments.study.intervals import MARGIN
from topkit.experiments.study.leaderboard import write_leaderboard
from topkit.experiments.study.models_compared import comparisons
from topkit.experiments.study.models_compared import sentences as carried
from topkit.experiments.study.own_kinds import reporter
from topkit.experiments.study.page import render
from topkit.experiments.study.pictures import pictures as drawing
from topkit.experiments.study.reading import HEADS, STUDY, Reading, reading, study_of
from topkit.experiments.study.run_facts import run_facts
from topkit.experiments.study.section import PICTURES, save_by_budget
from topkit.experiments.study.sections import sections as own_sections
from topkit.experiments.study.setting import section_of
from topkit.experiments.study.sheet import Sheet
from topkit.experiments.study.two_models import compared_shown
from topkit.indexers.budget import Budget, Budgets, parse_budgets

# Settings at a budget whose pictures nobody has to ask for: each takes about two seconds.
MOST_DRAWN = 4
NOT_DRAWN = (
    "the figures of {} settings stand in the page alone; --pictures writes them as PNG and SVG, too"
)


def write_report(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    k: Budgets | None = None,
    out: str | Path | None = None,
    pictures: bool | None = None,
) -> Path:
    """Write RUN/report.html and RUN/figures/*.png, *.svg; returns the report's path.

    run: the folder of a run, or of several of one identity, as shards leave them, whose rows are joined.
    out: where to write to; by default the first run's folder. k: the budgets that are shown; without it the
    one that most real indexers were run at, and every cell in the table; a leaderboard shows all. pictures: whether figures are
    written as PNG and SVG, too; without it where a page has at most MOST_DRAWN settings. The condensed tables of one
    run's rows are written as well, under RUN/curve.
    A run without rows yet gets a page that says so. Raises: InputError when nothing was run at a budget, naming a part that is not as the
    run wrote it, and for runs that cannot be joined.
    """
    return reported(run, margin, k, out, pictures)[0]


def reported(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    k: Budgets | None = None,
    out: str | Path | None = None,
    pictures: bool | None = None,
) -> tuple[Path, list[str]]:
    """As `write_report`; beside the path what is not there, a line each: rows that were to be run, and pictures."""
    several = list(run) if isinstance(run, list | tuple) else [run]
    runs = [path_of(one, "the folder of a run") for one in several]
    if not runs:
        raise InputError("no run to report; name the folders of one or more")
    study = study_of(runs[0] / STUDY)
    if own := reporter(study):
        if len(runs) > 1 or k is not None or out is not None:
            raise InputError(
                f"the page of {runs[0]} stands in its own folder and shows every k; leave out other runs, -k and --out"
            )
        return own(runs[0], study), []
    folder = runs[0] if out is None else path_of(out, "a folder for the report")
    try:
        read = reading(runs, study)
    except NoRows as none:
        folder.mkdir(parents=True, exist_ok=True)
        return write_empty(folder, str(none), runs, study), [str(none)]
    folder.mkdir(parents=True, exist_ok=True)
    if study.get(HEADS):
        return write_heads(folder, read), read.absent
    if study.get(LEADERBOARD):
        return write_leaderboard(folder, read, runs[0], study), read.absent
    budgets = None if k is None else _run_at(parse_budgets(k), read.curves)
    shown = [(curve, _at(curve, budgets)) for curve in read.curves]
    all_findings = [Findings(curve, margin, k) for curve, ks in shown for k in ks]
    few = len(all_findings) <= MOST_DRAWN
    wanted = few if pictures is None else pictures
    with drawing(PICTURES * len(all_findings) * wanted) as drawn:
        sheet = Sheet(folder / "figures", drawn if wanted else None)
        asked = in_page(own_sections(study, all_findings, runs[0]), sheet)
        cite = citation(read.described, runs)
        page = _page(all_findings, study, sheet, read, budgets, asked, cite)
    write_whole(
        folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"), parents=False
    )
    left = [NOT_DRAWN.format(len(all_findings))] if pictures is None and not few else []
    return folder / "report.html", [*read.absent, *left]


def _run_at(budgets: Sequence[Budget], curves: Sequence[Curve]) -> Sequence[Budget]:
    """The budgets themselves.

    Raises: InputError for one that nothing was run at.
    """
    there = dict.fromkeys(budget for curve in curves for budget in curve.budgets)
    missing = ", ".join(str(budget) for budget in budgets if budget not in there)
    if missing:
        known = ",".join(map(str, there)) or "none: full attention ran alone"
        raise InputError(f"nothing was run at k = {missing}; there is -k {known}")
    return budgets


def _at(curve: Curve, budgets: Sequence[Budget] | None) -> list[Budget | None]:
    """The budgets at which a curve is shown: those chosen that it has, or its own."""
    return [k for k in budgets or () if k in curve.budgets] or [curve.budget]


def _page(
    all_findings: Sequence[Findings],
    study: Mapping[str, Any],
    sheet: Sheet,
    read: Reading,
    budgets: Sequence[Budget] | None,
    asked: Sequence[Mapping[str, Any]],
    cite: str,
) -> str:
    # One a curve, whatever its budgets: what is of all of its cells.
    alone = list({id(f.curve): f for f in all_findings}.values())
    curves = [findings.curve for findings in alone]
    rows = {id(findings.curve): findings.rows for findings in alone}
    names = families([row for of_curve in rows.values() for row in of_curve])
    found = answers(all_findings)
    screens = [first_screen(one, sheet, names, rows) for one in found]
    compared = comparisons(curves)
    sections = [
        section_of(f, [g for g in all_findings if g.curve is f.curve], sheet, names, rows[id(f.curve)], budgets, found)
        for f in alone
    ]  # fmt: skip
    save_by_budget(curves, rows, sheet, names)
    return render(
        "report.html",
        sheet,
        cite,
        title=f"topkit report: {study.get('model', 'a model')}",
        lead=_lead(all_findings, study),
        screens=screens,
        families=names,
        absent=read.absent,
        overview=overview(alone, rows) if len(alone) > 1 else None,
        compared=compared_shown(compared, sheet),
        sections=sections,
        asked=asked,
        findings=[
            (_title(f) if len(all_findings) > 1 else "", f.sentences()) for f in all_findings
        ],
        carried=[(" and ".join(one.models), list(carried(one))) for one in compared],
        audits=[f"{f.curve.title}: {line}" for f in alone for line in f.audits()],
        not_shown=_not_shown(alone),
        method=_method(alone, study),
        facts=run_facts(read.described, study),
        origin=read.origin,
    )


def _lead(all_findings: Sequence[Findings], study: Mapping[str, Any]) -> str:
    """What was run, in a line."""
    curves = list({id(f.curve): f.curve for f in all_findings}.values())
    cells = max(len(curve.cells) for curve in curves)
    prompts = sum(int(curve.questions.sum()) for curve in curves)
    model = study.get("model", "a model")
    lengths: dict[str, list[str]] = {}
    for curve in curves:
        its = lengths.setdefault(curve.task, [])
        its += [f"{curve.length:,}"] if f"{curve.length:,}" not in its else []
    tasks = [f"{task} at {', '.join(its)} tokens" for task, its in lengths.items()]
    settings = "; ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
    return f"{model}, {settings}: {cells} cells, {prompts} questions each."


def _title(findings: Findings) -> str:
    at = "" if findings.budget is None else f"; k = {findings.budget}"
    return findings.curve.title + at


def _not_shown(all_findings: Sequence[Findings]) -> list[str]:
    words = {
        "sparse_from": " or ".join(
            dict.fromkeys(f"the {f.curve.sparse_from}" for f in all_findings)
        ),
        "cells": max(len(f.curve.cells) for f in all_findings),
        "models": _models_run(len({f.curve.model for f in all_findings})),
    }
    return [line.format(**words) for line in NOT_SHOWN]


def _models_run(count: int) -> str:
    return "One model was run" if count == 1 else f"{count} models were run"


def _method(all_findings: Sequence[Findings], study: Mapping[str, Any]) -> list[str]:
    several = TWO_MODELS if len({f.curve.model for f in all_findings}) > 1 else ()
    return [*METHOD, *several, *(line for f in all_findings for line in checks(f, study))]
