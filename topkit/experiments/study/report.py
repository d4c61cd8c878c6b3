"""The report of a run: one HTML file that needs nothing else, and its figures as PNG and SVG."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from topkit.documents import Number, read_json
from topkit.experiments.evaluate.haystack_means import keep_condensed
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study import figures
from topkit.experiments.study.cells_table import cells_table
from topkit.experiments.study.curves import EXACT
from topkit.experiments.study.curves import curves as curves_of
from topkit.experiments.study.findings import MARGIN, Findings
from topkit.experiments.study.page import PAGE, listed, save_figure
from topkit.experiments.study.provenance import sentences

STUDY = "study.json"
ABOUT = {
    "model?": str,
    "aims?": {"reach?": Number(0, 1), "exact_between?": (Number(0, 1), Number(0, 1))},
    str: object,
}

_NOT_SHOWN = (
    "Other models. One model was run; a larger one, or one trained otherwise, may notice sooner or "
    "later.",
    "A sparse prefill. The haystack was always read densely; selectors ran from {sparse_from} on.",
    "Speed. Bytes read are counted by formula, not timed.",
    "Where errors fall. Recall and mass are means over layers, heads and steps; two indexers of equal "
    "means may lose different keys.",
    "That fidelity causes accuracy among real indexers: they differ in more than fidelity. The oracles "
    "change precision alone, but each in one manner of loss.",
    "Anything about indexers that were not run. Correlations treat those that were as a sample.",
    "Intervals that hold all at once: each holds at 95 % by itself, so of {cells} cells one or two may "
    "lie outside theirs.",
)


def write_report(run: str | Path, margin: float = MARGIN) -> Path:
    """Write RUN/report.html and RUN/figures/*.png, *.svg; returns the report's path.

    The condensed tables of a run's rows are written as well, under RUN/curve.
    Raises: InputError when the run holds no rows, and naming a part that is not as the run wrote it.
    """
    run = Path(run)
    origin = list(sentences(require_intact(run)))
    all_findings = [Findings(curve, margin) for curve in curves_of(*keep_condensed(run))]
    study = _study(run / STUDY)
    page = PAGE.format(
        title="How good must an indexer be before the model notices?",
        body="\n".join(_body(all_findings, study, run / "figures", origin)),
    )
    write_whole(
        run / "report.html", lambda path: path.write_text(page, encoding="utf-8"), parents=False
    )
    return run / "report.html"


def _study(path: Path) -> dict[str, Any]:
    """The content of study.json; nothing where `evaluate` wrote the run."""
    if not path.exists():
        return {}
    return read_json(path, ABOUT, "run the study again, or delete the file")


def _body(
    all_findings: Sequence[Findings], study: Mapping[str, Any], folder: Path, origin: Sequence[str]
) -> Iterator[str]:
    yield f'<p class="lead">{escape(_lead(all_findings, study))}</p>'
    yield f'<p class="note">{escape(" ".join(origin))}</p>'
    for findings in all_findings:
        if len(all_findings) > 1:
            yield f"<h3>{escape(findings.curve.title)}</h3>"
        yield listed(findings.sentences(), "findings")
    audits = [f"{f.curve.title}: {line}" for f in all_findings for line in f.audits()]
    if audits:
        yield f'<div class="audit"><h3>To audit</h3>{listed(audits)}</div>'
    yield _not_shown(all_findings)
    curves = [findings.curve for findings in all_findings]
    yield "<h2>Accuracy against the budget</h2>"
    yield save_figure(folder, "accuracy-by-k", figures.by_budget(curves), _CAPTIONS["k"])
    for findings in all_findings:
        yield from _section(findings, folder)
    yield from _method(all_findings, study)


_CAPTIONS = {
    "k": "Exact Top-k at several budgets; the dashed line is full attention, its band the interval.",
    "fidelity": "Accuracy against recall and against mass, both as observed in the runs that were "
    "scored. Lines: oracles, exact Top-k with a known share of keys lost. Numbered points: real "
    "indexers and the control. Dotted: the accuracy that chance alone leaves when every key is lost "
    "anew at every step with probability 1 - p and one loss spoils a token; in the right panel at the "
    "mass that such a loss leaves of exact Top-k's. Bars: 95 % intervals.",
    "heads": "Mean recall of each layer and query head, against that head's own exact Top-k.",
    "bytes": "What a decoding step reads to choose its keys, a layer, against the fidelity that it "
    "buys; reading the chosen keys and values is the same for all and not counted. Dashed: every "
    "key read. The axis is linear below 1 KiB.",
}


def _lead(all_findings: Sequence[Findings], study: Mapping[str, Any]) -> str:
    """What was run, in a line."""
    cells = max(len(f.curve.cells) for f in all_findings)
    prompts = sum(int(f.curve.questions.sum()) for f in all_findings)
    model = study.get("model", "a model")
    settings = (
        "; ".join(f.curve.title for f in all_findings)
        if len(all_findings) < 4
        else f"{len(all_findings)} tasks"
    )
    return f"{model}, {settings}: {cells} cells, {prompts} questions each."


def _section(findings: Findings, folder: Path) -> Iterator[str]:
    curve, budget = findings.curve, findings.curve.budget
    drawn: list[tuple[str, str, Callable[[], Figure | None]]] = []
    if budget is not None and curve.observed:
        drawn = [
            ("fidelity", "accuracy-by-fidelity", lambda: figures.by_fidelity(curve, budget)),
            ("heads", "recall-by-head", lambda: figures.by_head(curve, budget)),
            ("bytes", "bytes-by-fidelity", lambda: figures.by_bytes(curve, budget)),
        ]
    yield f"<h2>{escape(curve.title)}</h2>"
    for caption, name, draw in drawn:
        figure = draw()
        if figure is not None:
            yield save_figure(folder, f"{name}-{curve.slug}", figure, _CAPTIONS[caption])
    yield cells_table(findings)


def _not_shown(all_findings: Sequence[Findings]) -> str:
    words = {
        "sparse_from": " or ".join(
            dict.fromkeys(f"the {f.curve.sparse_from}" for f in all_findings)
        ),
        "cells": max(len(f.curve.cells) for f in all_findings),
    }
    items = [line.format(**words) for line in _NOT_SHOWN]
    return f'<div class="box"><h3>What this does not show</h3>{listed(items)}</div>'


def _method(all_findings: Sequence[Findings], study: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How it was computed</h2>"
    yield listed([*_METHOD, *(line for f in all_findings for line in checks(f, study))])
    constants = {name: value for name, value in study.items() if name != "aims"}
    if constants:
        yield "<h3>The run</h3>"
        items = [f"{name}: {value}" for name, value in constants.items()]
        yield listed(items)


_METHOD = (
    "Accuracy: the mean over questions, with Wilson's interval on the effective number of questions (of "
    "tokens, where each is right or wrong), "
    "which is their number over the design effect of sharing haystacks, pooled over all cells of a "
    "task. A bootstrap over haystacks would give cells at 0 or 1 no width at all.",
    "NLL is of the true answer, KL from full attention's next token, in nats a token; their intervals, and "
    "those of NLL's paired differences, are Student's over haystacks.",
    "Differences: paired on haystacks, the two Wilson intervals joined with their correlation over "
    "haystacks (Donner and Zou).",
    "Correlations: Spearman's over cells at all budgets, percentile intervals of a bootstrap that draws "
    "haystacks and cells anew (4000 draws, fixed seed). The control is left out; exact Top-k counts "
    "among the oracles.",
    "Recall is judged a query head against its own exact Top-k; rows where every visible key fits in k "
    "are left out.",
)


def checks(findings: Findings, study: Mapping[str, Any]) -> list[str]:
    """Whether the intervals are as narrow, and the task as difficult, as the study aims at."""
    curve, aims = findings.curve, study.get("aims", {})
    widest, lines = float(findings.accuracy.reach.max()), list[str]()
    if "reach" in aims:
        met = "met" if widest <= aims["reach"] else "NOT met"
        lines.append(
            f"{curve.title}: the widest interval on an accuracy is ±{widest:.3f}; the aim of "
            f"±{aims['reach']:g} is {met}."
        )
    if "exact_between" in aims:
        low, high = aims["exact_between"]
        places = [p for p in curve.where("oracle") if curve.cells[p].indexer == EXACT]
        within = [p for p in places if low <= findings.accuracy.value[p] <= high]
        budgets = ", ".join(str(curve.cells[p].budget) for p in within)
        met = f"met at k = {budgets}" if within else "NOT met at any k that was run"
        lines.append(
            f"{curve.title}: that exact Top-k scores between {low:g} and {high:g} is {met}."
        )
    if curve.dropped:
        lines.append(f"{curve.title}: {curve.dropped} haystacks were left out, unfinished.")
    lines += [
        f"{curve.title}: {recipe} is shown by its name, and counts as a real indexer: {recipe.why}."
        for recipe in curve.unknown
    ]
    return lines
