"""The report of a run: one HTML file that needs nothing else, and its figures as PNG and SVG."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from topkit.errors import InputError
from topkit.experiments.evaluate.condense import keep_condensed
from topkit.experiments.runs.cells import DENSE
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study import figures
from topkit.experiments.study.curves import EXACT, kind_of, name_of
from topkit.experiments.study.curves import curves as curves_of
from topkit.experiments.study.findings import MARGIN, Findings, said

STUDY = "study.json"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.55 Georgia, "Times New Roman", serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }}
h2 {{ font-size: 1.25rem; margin: 2.6rem 0 .5rem; border-top: 1px solid #ccc; padding-top: 1.2rem; }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .3rem; }}
p, li {{ max-width: 46rem; }}
p.lead {{ color: #555; margin-top: 0; }}
figure {{ margin: 1rem 0 1.6rem; }}
figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption, .note {{ font-size: .88rem; color: #444; max-width: 52rem; }}
.findings li {{ margin-bottom: .45rem; }}
.box {{ border: 1px solid #999; background: #f7f7f5; padding: .4rem 1.2rem .8rem; margin: 1.5rem 0; }}
.audit {{ border-left: 5px solid #b3541e; padding: .2rem 1rem; background: #fdf6f0; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font: 12px/1.4 ui-monospace, Menlo, Consolas, monospace;
  font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .16rem .5rem; border-bottom: 1px solid #e4e4e4;
  white-space: nowrap; }}
th {{ border-bottom: 1px solid #888; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.kind td {{ font-weight: bold; border-bottom: none; padding-top: .7rem; }}
code {{ font: .88em ui-monospace, Menlo, Consolas, monospace; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

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
    """Write RUN/report.html and RUN/figures/*.png, *.svg; gives the path of the report.

    The condensed tables of a run's rows are written as well, under RUN/curve.
    Raises: InputError when the run holds no rows.
    """
    run = Path(run)
    found = [Findings(curve, margin) for curve in curves_of(*keep_condensed(run))]
    study = _study(run / STUDY)
    page = _PAGE.format(
        title="How good must an indexer be before the model notices?",
        body="\n".join(_body(found, study, run / "figures")),
    )
    write_whole(run / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return run / "report.html"


def _study(path: Path) -> dict[str, Any]:
    """What a study says of itself; nothing where `evaluate` wrote the run."""
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise InputError(f"{path} is damaged; run the study again, or delete the file")
    return held


def _body(found: Sequence[Findings], study: Mapping[str, Any], folder: Path) -> Iterator[str]:
    yield f'<p class="lead">{escape(_lead(found, study))}</p>'
    for findings in found:
        if len(found) > 1:
            yield f"<h3>{escape(findings.curve.title)}</h3>"
        yield _list(findings.sentences(), "findings")
    audits = [f"{f.curve.title}: {line}" for f in found for line in f.audits()]
    if audits:
        yield f'<div class="audit"><h3>To audit</h3>{_list(audits)}</div>'
    yield _not_shown(found)
    curves = [findings.curve for findings in found]
    yield "<h2>Accuracy against the budget</h2>"
    yield _figure(folder, "accuracy-by-k", figures.by_budget(curves), _CAPTIONS["k"])
    for findings in found:
        yield from _section(findings, folder)
    yield from _method(found, study)


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


def _lead(found: Sequence[Findings], study: Mapping[str, Any]) -> str:
    """What was run, in a line."""
    cells = max(len(f.curve.cells) for f in found)
    prompts = sum(int(f.curve.questions.sum()) for f in found)
    model = study.get("model", "a model")
    settings = "; ".join(f.curve.title for f in found) if len(found) < 4 else f"{len(found)} tasks"
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
            yield _figure(folder, f"{name}-{curve.slug}", figure, _CAPTIONS[caption])
    yield _table(findings)


def _figure(folder: Path, name: str, figure: Figure, caption: str) -> str:
    """Save as PNG and SVG, and inline the SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    vector = io.BytesIO()
    with figures.drawing():
        figure.savefig(vector, format="svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
    (folder / f"{name}.svg").write_bytes(vector.getvalue())
    inlined = base64.b64encode(vector.getvalue()).decode()
    return (
        f'<figure id="{name}"><img alt="{escape(caption, quote=True)}" '
        f'src="data:image/svg+xml;base64,{inlined}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


_COLUMNS = (
    "cell",
    "k",
    "accuracy",
    "less full attention",
    f"at {MARGIN:g}",
    "less exact Top-k",
    "NLL",
    "NLL less full attention",
    "KL",
    "recall",
    "mass",
    "KiB read",
)


def _table(findings: Findings) -> str:
    curve, lines, kind = findings.curve, [], ""
    columns = [c.replace(f"{MARGIN:g}", f"{findings.margin:g}") for c in _COLUMNS]
    columns[3:3] = _apart(findings)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    for place, cell in enumerate(curve.cells):
        if kind_of(cell) != kind:
            kind = kind_of(cell)
            lines.append(f'<tr class="kind"><td colspan="{len(columns)}">{_KINDS[kind]}</td></tr>')
        cells = "".join(f"<td>{escape(text)}</td>" for text in _row(findings, place))
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return (
        "<h3>Every cell</h3><p class='note'>Differences are paired: the same questions, the same "
        f"haystacks. At {findings.margin:g}: as good where the interval of the difference to full "
        f"attention lies above -{findings.margin:g}, worse where it lies below.</p>"
        f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


_KINDS = {
    DENSE: "full attention",
    "oracle": "oracles",
    "real": "real indexers",
    "control": "control",
}


def _apart(findings: Findings) -> list[str]:
    """The columns of trained and of held-out words, where there are both."""
    return list(findings.apart) if len(findings.apart) > 1 else []


def _row(findings: Findings, place: int) -> list[str]:
    curve, to_exact = findings.curve, findings.to_exact(place)
    cell, numbers = curve.cells[place], {m: curve.mean(m)[place] for m in curve.fidelity}
    compared = findings.to_dense is not None and kind_of(cell) != DENSE
    return [
        name_of(cell),
        str(cell.budget or ""),
        said(findings.accuracy[place]),
        *(said(findings.apart[name][place]) for name in _apart(findings)),
        said(findings.to_dense[place], signed=True) if compared else "",  # type: ignore[index]
        findings.verdict(place),
        said(to_exact, signed=True) if to_exact is not None and kind_of(cell) != DENSE else "",
        *findings.nats(place),
        _number(numbers["recall"]),
        _number(numbers["mass"]),
        _number(numbers["bytes_read"] / 1024, 1),
    ]


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def _not_shown(found: Sequence[Findings]) -> str:
    words = {
        "sparse_from": " or ".join(dict.fromkeys(f"the {f.curve.sparse_from}" for f in found)),
        "cells": max(len(f.curve.cells) for f in found),
    }
    items = [line.format(**words) for line in _NOT_SHOWN]
    return f'<div class="box"><h3>What this does not show</h3>{_list(items)}</div>'


def _method(found: Sequence[Findings], study: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How it was computed</h2>"
    yield _list([*_METHOD, *(line for f in found for line in checks(f, study))])
    constants = {name: value for name, value in study.items() if name != "aims"}
    if constants:
        yield "<h3>The run</h3>"
        items = [f"{name}: {value}" for name, value in constants.items()]
        yield _list(items)


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
    """Whether the intervals and the difficulty are what the study set out for."""
    curve, aims = findings.curve, study.get("aims", {})
    widest, lines = float(findings.accuracy.reach.max()), []
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


def _list(items: Sequence[str], style: str = "") -> str:
    shown = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="{style}">{shown}</ul>' if style else f"<ul>{shown}</ul>"
