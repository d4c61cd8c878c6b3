"""The report of a run: one HTML file that needs nothing else, and its figures as PNG and SVG."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.accuracy_by_k import by_budget
from topkit.experiments.study.aims import checks
from topkit.experiments.study.blocks import as_html
from topkit.experiments.study.budget_figures import MOST, figures_of
from topkit.experiments.study.captions import CAPTIONS, METHOD, NOT_SHOWN, TWO_MODELS
from topkit.experiments.study.cells_table import cells_table
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import entries
from topkit.experiments.study.equal_recipes import LEADERBOARD
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.heads_page import HEADS, write_heads
from topkit.experiments.study.intervals import MARGIN
from topkit.experiments.study.leaderboard import write_leaderboard
from topkit.experiments.study.models_compared import comparisons
from topkit.experiments.study.models_compared import sentences as carried
from topkit.experiments.study.page import PAGE, listed, save_figure
from topkit.experiments.study.pictures import Pictures, pictures
from topkit.experiments.study.reading import RUNS, STUDY, Reading, reading, study_of
from topkit.experiments.study.sections import sections
from topkit.experiments.study.two_models import CAPTION, by_model
from topkit.indexers.budget import Budget, Budgets, parse_budgets


def write_report(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    k: Budgets | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write RUN/report.html and RUN/figures/*.png, *.svg; returns the report's path.

    run: the folder of a run, or of several of one identity, as shards leave them, whose rows are joined.
    out: where to write to; by default the first run's folder. k: the budgets that are shown; without it the
    one that most real indexers were run at, and every cell in the table; a leaderboard shows all. The condensed tables of one run's
    rows are written as well, under RUN/curve.
    Raises: InputError when the run holds no rows, or none at a budget, naming a part that is not as the
    run wrote it, and for runs that cannot be joined.
    """
    return reported(run, margin, k, out)[0]


def reported(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    k: Budgets | None = None,
    out: str | Path | None = None,
) -> tuple[Path, list[str]]:
    """As `write_report`; beside the path, what was to be run and is not there, a line each."""
    several = list(run) if isinstance(run, list | tuple) else [run]
    runs = [path_of(one, "the folder of a run") for one in several]
    if not runs:
        raise InputError("no run to report; name the folders of one or more")
    study = study_of(runs[0] / STUDY)
    read = reading(runs, study)
    folder = runs[0] if out is None else path_of(out, "a folder for the report")
    folder.mkdir(parents=True, exist_ok=True)
    if study.get(HEADS):
        return write_heads(folder, read), read.absent
    if study.get(LEADERBOARD):
        return write_leaderboard(folder, read, runs[0], study), read.absent
    budgets = None if k is None else _run_at(parse_budgets(k), read.curves)
    shown = [(curve, _at(curve, budgets)) for curve in read.curves]
    all_findings = [Findings(curve, margin, k) for curve, ks in shown for k in ks]
    with pictures(MOST * len(all_findings)) as drawn:
        asked = list(map(as_html, sections(study, all_findings, runs[0])))
        body = list(_body(all_findings, study, folder / "figures", read, budgets, drawn, asked))
    title = "How good must an indexer be before the model notices?"
    page = PAGE.format(title=title, body="\n".join(body))
    write_whole(
        folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"), parents=False
    )
    return folder / "report.html", read.absent


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


def _body(
    all_findings: Sequence[Findings],
    study: Mapping[str, Any],
    folder: Path,
    read: Reading,
    budgets: Sequence[Budget] | None,
    drawn: Pictures,
    asked: Sequence[str],
) -> Iterator[str]:
    yield f'<p class="lead">{escape(_lead(all_findings, study))}</p>'
    yield f'<p class="note">{escape(" ".join(read.origin))}</p>'
    if read.absent:
        yield f'<div class="audit"><h3>Not finished</h3>{listed(read.absent)}</div>'
    yield from asked
    for findings in all_findings:
        if len(all_findings) > 1:
            yield f"<h3>{escape(_title(findings))}</h3>"
        yield listed(findings.sentences(), "findings")
    # One a curve, whatever its budgets: what is of all of its cells.
    alone = list({id(f.curve): f for f in all_findings}.values())
    compared = comparisons([findings.curve for findings in alone])
    for one in compared:
        yield f"<h3>{escape(' and '.join(one.models))}</h3>"
        yield listed(list(carried(one)), "findings")
    audits = [f"{f.curve.title}: {line}" for f in alone for line in f.audits()]
    if audits:
        yield f'<div class="audit"><h3>To audit</h3>{listed(audits)}</div>'
    yield _not_shown(alone)
    curves = [findings.curve for findings in alone]
    marks = entries(curves)
    yield "<h2>Accuracy against the budget</h2>"
    yield save_figure(folder, "accuracy-by-k", by_budget(curves, marks), CAPTIONS["k"], drawn)
    if compared:
        yield "<h2>From one model to the other</h2>"
        yield save_figure(folder, "accuracy-by-model", by_model(compared, marks), CAPTION, drawn)
    for findings in alone:
        yield f"<h2>{escape(findings.curve.title)}</h2>"
        several = [other for other in all_findings if other.curve is findings.curve]
        for other in several:
            yield from figures_of(other, marks, folder, drawn, named=len(several) > 1)
        yield cells_table(findings, budgets)
    yield from _method(alone, study)


def _lead(all_findings: Sequence[Findings], study: Mapping[str, Any]) -> str:
    """What was run, in a line."""
    curves = list({id(f.curve): f.curve for f in all_findings}.values())
    cells = max(len(curve.cells) for curve in curves)
    prompts = sum(int(curve.questions.sum()) for curve in curves)
    model = study.get("model", "a model")
    settings = (
        "; ".join(curve.title for curve in curves) if len(curves) < 4 else f"{len(curves)} tasks"
    )
    return f"{model}, {settings}: {cells} cells, {prompts} questions each."


def _title(findings: Findings) -> str:
    at = "" if findings.budget is None else f"; k = {findings.budget}"
    return findings.curve.title + at


def _not_shown(all_findings: Sequence[Findings]) -> str:
    words = {
        "sparse_from": " or ".join(
            dict.fromkeys(f"the {f.curve.sparse_from}" for f in all_findings)
        ),
        "cells": max(len(f.curve.cells) for f in all_findings),
        "models": _models_run(len({f.curve.model for f in all_findings})),
    }
    items = [line.format(**words) for line in NOT_SHOWN]
    return f'<div class="box"><h3>What this does not show</h3>{listed(items)}</div>'


def _models_run(count: int) -> str:
    return "One model was run" if count == 1 else f"{count} models were run"


def _method(all_findings: Sequence[Findings], study: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How it was computed</h2>"
    several = TWO_MODELS if len({f.curve.model for f in all_findings}) > 1 else ()
    yield listed([*METHOD, *several, *(line for f in all_findings for line in checks(f, study))])
    constants = {name: value for name, value in study.items() if name not in ("aims", RUNS)}
    if constants:
        yield "<h3>The run</h3>"
        items = [f"{name}: {value}" for name, value in constants.items()]
        yield listed(items)
