"""The report of a run: one HTML file that needs nothing else, and its figures as PNG and SVG."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from topkit.documents import Number, Text, Whole, path_of, read_json
from topkit.errors import InputError
from topkit.experiments.evaluate.haystack_means import keep_condensed
from topkit.experiments.runs import run_file
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study import figures
from topkit.experiments.study.accuracy_by_k import by_budget
from topkit.experiments.study.aims import checks
from topkit.experiments.study.captions import CAPTIONS, METHOD, NOT_SHOWN, TWO_MODELS
from topkit.experiments.study.cells_table import cells_table
from topkit.experiments.study.curves import Curve, load
from topkit.experiments.study.curves import curves as curves_of
from topkit.experiments.study.drawing import Entries, entries
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.haystacks import joined
from topkit.experiments.study.intervals import MARGIN
from topkit.experiments.study.models_compared import comparisons
from topkit.experiments.study.models_compared import sentences as carried
from topkit.experiments.study.page import PAGE, listed, save_figure
from topkit.experiments.study.provenance import sentences
from topkit.experiments.study.two_models import CAPTION, by_model
from topkit.indexers.budget import Budget, Budgets, parse_budgets

STUDY = "study.json"
# Of a study of several models or seeds: its runs, each in a folder below the study's.
RUNS = "runs"
# What a run's own study.json says of it.
OF_A_RUN = ("pilot", "left out")
_FOLDER = Text(r"[\w.-]*[\w-][\w.-]*(/seed-[0-9]+)?", "a folder below the study's own")
ABOUT = {
    "model?": str,
    "runs?": [{"model": str, "seed": Whole(), "folder": _FOLDER}],
    "aims?": {"reach?": Number(0, 1), "exact_between?": (Number(0, 1), Number(0, 1))},
    str: object,
}


def write_report(run: str | Path, margin: float = MARGIN, k: Budgets | None = None) -> Path:
    """Write RUN/report.html and RUN/figures/*.png, *.svg; returns the report's path.

    k: the budgets that are shown; without it the one that most real indexers were run at, and every
    cell in the table. The condensed tables of a run's rows are written as well, under RUN/curve.
    Raises: InputError when the run holds no rows, or none at a budget, and naming a part that is not
    as the run wrote it.
    """
    run = path_of(run, "the folder of a run")
    study = study_of(run / STUDY)
    origin, curves = _read(run, study)
    budgets = None if k is None else _run_at(parse_budgets(k), curves)
    shown = [(curve, _at(curve, budgets)) for curve in curves]
    all_findings = [Findings(curve, margin, k) for curve, ks in shown for k in ks]
    page = PAGE.format(
        title="How good must an indexer be before the model notices?",
        body="\n".join(_body(all_findings, study, run / "figures", origin, budgets)),
    )
    write_whole(
        run / "report.html", lambda path: path.write_text(page, encoding="utf-8"), parents=False
    )
    return run / "report.html"


def _read(run: Path, study: Mapping[str, Any]) -> tuple[list[str], list[Curve]]:
    """Where the rows of a run come from, in sentences, and its curves; of a study of several, of all its runs."""
    if RUNS not in study or (run / run_file.NAME).exists():
        return list(sentences(require_intact(run))), curves_of(*keep_condensed(run))
    origin, curves = list[str](), list[Curve]()
    names = [Path(one["folder"]).parts[0] for one in study[RUNS]]
    models = list(dict.fromkeys(one["model"] for one in study[RUNS]))
    for model in models:
        seeds = [(n, run / one["folder"]) for n, one in zip(names, study[RUNS], strict=True) if one["model"] == model]  # fmt: skip
        there = [(name, seed) for name, seed in seeds if (seed / run_file.NAME).exists()]
        for name, seed in seeds:
            origin += _said(name, seed) if (name, seed) in there else [f"{seed} was not run yet."]
        for curve in joined([load(seed) for _, seed in there]):
            curves.append(replace(curve, model=there[0][0] if len(models) > 1 else ""))
    if not curves:
        raise InputError(f"{run} holds a study none of whose runs has begun; run it first")
    # Beside one another what differs in the model alone.
    return origin, sorted(curves, key=lambda curve: (curve.task, curve.length, curve.sparse_from))


def _said(name: str, run: Path) -> list[str]:
    """Where a run's rows come from, and what its study.json says of it."""
    said = study_of(run / STUDY)
    lines = [f"{name}: {line}" for line in sentences(require_intact(run))]
    return [*lines, *(f"{name}, {of}: {said[of]}." for of in OF_A_RUN if of in said)]


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


def study_of(path: Path) -> dict[str, Any]:
    """The content of study.json; nothing where `evaluate` wrote the run."""
    if not path.exists():
        return {}
    return read_json(path, ABOUT, "run the study again, or delete the file")


def _body(
    all_findings: Sequence[Findings],
    study: Mapping[str, Any],
    folder: Path,
    origin: Sequence[str],
    budgets: Sequence[Budget] | None,
) -> Iterator[str]:
    yield f'<p class="lead">{escape(_lead(all_findings, study))}</p>'
    yield f'<p class="note">{escape(" ".join(origin))}</p>'
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
    yield save_figure(folder, "accuracy-by-k", by_budget(curves, marks), CAPTIONS["k"])
    if compared:
        yield "<h2>From one model to the other</h2>"
        yield save_figure(folder, "accuracy-by-model", by_model(compared, marks), CAPTION)
    for findings in alone:
        yield f"<h2>{escape(findings.curve.title)}</h2>"
        several = [other for other in all_findings if other.curve is findings.curve]
        for other in several:
            yield from _figures(other, marks, folder, named=len(several) > 1)
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


def _figures(findings: Findings, marks: Entries, folder: Path, named: bool) -> Iterator[str]:
    """The figures at a budget, which is `named` in their files where there are several."""
    curve, budget = findings.curve, findings.budget
    if budget is None or not curve.observed:
        return
    drawn: list[tuple[str, str, Callable[..., Figure | None]]] = [
        ("fidelity", "accuracy-by-fidelity", figures.by_fidelity),
        ("heads", "recall-by-head", figures.by_head),
        ("bytes", "bytes-by-fidelity", figures.by_bytes),
    ]
    at = f"-k-{str(budget).replace('%', 'pct')}" if named else ""
    for caption, name, draw in drawn:
        figure = draw(curve, budget, marks)
        if figure is not None:
            yield save_figure(folder, f"{name}-{curve.slug}{at}", figure, CAPTIONS[caption])


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
