"""Figures of a run for one's own notebooks, as Altair charts that hold their numbers and the line to cite them by.

names: whether points are named beside themselves; `save` places the names so that they cover nothing. A
notebook shows them where it points.
"""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import altair as alt
import vl_convert as vlc

from topkit.documents import path_of, quote
from topkit.errors import InputError
from topkit.experiments.study.accuracy_by_k import by_budget
from topkit.experiments.study.cell_rows import cell_rows
from topkit.experiments.study.citation import cite
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import CONFIG, compiled, families
from topkit.experiments.study.figures import by_cost, by_fidelity
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.intervals import MARGIN
from topkit.experiments.study.reading import load_study
from topkit.experiments.study.section import lines_of
from topkit.indexers.budget import parse_budget

FIDELITY = ("recall", "mass", "ws")
Draw = Callable[[Sequence[str]], alt.LayerChart]


def accuracy_by_bytes(
    run: str | Path,
    k: str | int | None = None,
    task: str | None = None,
    margin: float = MARGIN,
    names: bool = False,
) -> alt.LayerChart:
    """Accuracy against the bytes that choosing reads, with the Pareto front and the margin, at one k.

    k: without it that of most indexers; task: of a run of several, one, as `curve.setting` names it.
    """
    return _chart(run, partial(by_cost, legend=True), k, task, margin, names)


def accuracy_by_fidelity(
    run: str | Path,
    metric: str = "recall",
    k: str | int | None = None,
    task: str | None = None,
    margin: float = MARGIN,
    names: bool = False,
) -> alt.LayerChart:
    """Accuracy against recall, mass, or the answer key's weight after selection (ws), at one k."""
    if metric not in FIDELITY:
        raise InputError(f"metric must be one of {', '.join(FIDELITY)}; got {metric!r}")
    return _chart(run, partial(by_fidelity, metric=metric, legend=True), k, task, margin, names)


def accuracy_by_k(
    run: str | Path, task: str | None = None, margin: float = MARGIN, names: bool = False
) -> alt.LayerChart:
    """Every recipe's accuracy against the keys that it kept."""
    return _chart(run, partial(by_budget, legend=True), None, task, margin, names)


def save(chart: alt.TopLevelMixin, file: str | Path) -> Path:
    """Write a figure as FILE.png or FILE.svg, the names of points where they cover nothing.

    Raises: InputError for another ending.
    """
    path = path_of(file, "a file, FILE.png or FILE.svg")
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"a figure is written as .png or .svg; got {quote(path.name)}")
    vector = vlc.vega_to_svg(compiled(chart))
    if path.suffix == ".svg":
        path.write_text(vector, encoding="utf-8")
    else:
        path.write_bytes(vlc.svg_to_png(vector, scale=2))
    return path


def _chart(run: str | Path, draw: Draw, k: str | int | None, task: str | None, margin: float, names: bool) -> alt.LayerChart:  # fmt: skip
    place = path_of(run, "the folder of a run")
    curve = _curve(load_study(place), task)
    budget = curve.budget if k is None else parse_budget(k)
    if budget not in curve.budgets and budget is not None:
        known = ",".join(map(str, curve.budgets))
        raise InputError(f"nothing was run at k = {budget}; there is {known}")
    found = Findings(curve, margin, budget)
    shown = cell_rows(found)
    chart = draw(families(shown))
    # The chart names its data and a budget; here they are in it.
    spec = chart.to_dict()
    spec["datasets"] = {**spec.get("datasets", {}), "cells": shown, "lines": lines_of(found)}
    for param in spec.get("params", ()):
        if param["name"] == "budget":
            param["value"] = str(budget or "")
    if not names:
        spec["layer"] = [layer for layer in spec["layer"] if layer.get("name") != "names"]
    spec["title"] = {"text": curve.setting, "subtitle": cite(place)}
    spec["config"] = CONFIG
    return alt.LayerChart.from_dict(spec)


def _curve(curves: Sequence[Curve], task: str | None) -> Curve:
    named = [c for c in curves if task in (None, c.task, c.setting, c.title)]
    if len(named) != 1:
        known = "; ".join(curve.setting for curve in curves)
        raise InputError(f"name one of this run's tasks: {known}; got {task!r}")
    return named[0]
