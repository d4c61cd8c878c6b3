"""The figures of a study: accuracy against budget and fidelity, recall by head, bytes against fidelity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study import stats
from topkit.experiments.study.curves import EXACT, Curve, name_of
from topkit.experiments.study.labels import label
from topkit.indexers.budget import Budget
from topkit.indexers.degraded import degraded

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.hashsalt": "topkit",
}


def drawing() -> AbstractContextManager[None]:
    """The style that figures are drawn and saved in."""
    return matplotlib.rc_context(STYLE)


# Dark to light as well as coloured, and never without a marker or a dash of its own.
_INK = "#111111"
_FAMILIES = {
    "quantized": ("s", "#0b4f8a"),
    "pages": ("D", "#b3541e"),
    "window": ("v", "#7a7a7a"),
    "control": ("X", "#000000"),
    "ann": ("P", "#1b7f5c"),
    "adaptive": ("^", "#8e3b7a"),
    "sampling": ("h", "#b08900"),
    "trained": ("*", "#4d2f8f"),
    "combinator": ("o", "#d0d0d0"),
}
_ORACLES = (
    ("-", "o", "#111111"),
    ("--", "s", "#3b6fb6"),
    ("-.", "^", "#c2571a"),
    ((0, (6, 1.5, 1, 1.5, 1, 1.5)), "D", "#5a9367"),
    ((0, (3, 1)), "v", "#8e3b7a"),
    ((0, (1.5, 1)), "P", "#8c8c8c"),
    ((0, (8, 3)), "X", "#b08900"),
)


@dataclass(frozen=True)
class Entry:
    """How a numbered cell is drawn, the same in every figure."""

    number: int
    cell: Cell
    marker: str
    color: str


def entries(curve: Curve, budget: Budget) -> dict[int, Entry]:
    """The real and control cells of a budget, by their place; numbered in the order of their names."""
    numbered = {}
    for number, place in enumerate(curve.where("real", "control", budget=budget), 1):
        cell = curve.cells[place]
        marker, color = _FAMILIES.get(cell.indexer.family, ("o", "#555555"))  # type: ignore[union-attr]
        numbered[place] = Entry(number, cell, marker, color)
    return numbered


def by_budget(curves: Sequence[Curve]) -> Figure:
    """(a) Accuracy of exact Top-k against k, full attention as a line; a panel a curve."""
    columns = min(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    with drawing():
        figure = Figure(figsize=(max(4.6, 3.3 * columns), 2.9 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(curves) :]:
            axes.remove()
        for axes, curve in zip(grid.flat, curves, strict=False):
            _exact_line(axes, curve)
            axes.set_title(f"{curve.task}, {curve.length} tokens")
            axes.set_xlabel("keys kept, k" + _percent(curve))
            axes.set_ylabel(_accuracy_label(curve))
        grid.flat[0].legend(loc="lower right")
    return figure


def _exact_line(axes: Axes, curve: Curve) -> None:
    scores = stats.accuracy(curve.rates, curve.trials)
    dense = curve.place(None)
    if dense is not None:
        _dense_line(axes, scores[dense])
    places = [p for p in curve.where("oracle") if curve.cells[p].indexer == EXACT]
    amounts = [curve.cells[p].budget.amount for p in places]  # type: ignore[union-attr]
    _with_intervals(axes, amounts, scores, places, fmt="o-", color=_INK, label="exact Top-k")
    axes.set_xscale("log", base=2)
    axes.set_xticks(amounts, [f"{x:g}" for x in amounts])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)


def _percent(curve: Curve) -> str:
    percent = curve.budget is not None and curve.budget.percent
    return " (% of the context)" if percent else " (by each head)"


def _accuracy_label(curve: Curve) -> str:
    return f"accuracy ({curve.measure.replace('_', ' ')})"


def _dense_line(axes: Axes, score: stats.Interval) -> None:
    value, low, high = score
    axes.axhline(value, color="0.35", lw=1, ls=(0, (5, 2)), label="full attention", zorder=1)
    axes.axhspan(low, high, color="0.5", alpha=0.14, lw=0, zorder=0)


def _with_intervals(
    axes: Axes, x: Any, scores: stats.Interval, places: Sequence[int], **style: Any
) -> None:
    y = scores.value[places]
    errors = np.clip([y - scores.low[places], scores.high[places] - y], 0, None)
    axes.errorbar(x, y, errors, ms=4, lw=1.2, elinewidth=0.7, capsize=1.5, **style)


def by_fidelity(curve: Curve, budget: Budget) -> Figure | None:
    """(b) Accuracy against recall and against mass: oracles as curves, real indexers as points.

    None where nothing was judged.
    """
    if not _judged(curve, budget):
        return None
    with drawing():
        figure, left, right = _two_panels(curve, budget)
        scores = stats.accuracy(curve.rates, curve.trials)
        for axes, metric in ((left, "recall"), (right, "mass")):
            dense = curve.place(None)
            if dense is not None:
                _dense_line(axes, scores[dense])
            _oracle_curves(axes, curve, budget, metric, scores)
            _null(axes, curve, budget, metric)
            # Recall may be 1; k keys hold a share of the mass, and its differences are to be seen.
            most = 1.0 if metric == "recall" else np.nanmax(curve.mean(metric), initial=0.01)
            axes.set_xlim(-0.03 * most, 1.04 * most)
            axes.set_ylim(-0.05, 1.09)
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.set_xlabel(_WORDS[metric])
            axes.set_ylabel(_accuracy_label(curve))
        lines, names = left.get_legend_handles_labels()
        for axes, metric in ((left, "recall"), (right, "mass")):
            _points(axes, curve, budget, curve.mean(metric), scores.value, scores)
        _key(figure, curve, budget, list(zip(lines, names, strict=True)))
    return figure


def _judged(curve: Curve, budget: Budget) -> bool:
    """Whether any cell has a fidelity to draw: none has where k covers all that is visible."""
    places = curve.where("oracle", "real", "control", budget=budget)
    return bool(np.isfinite(curve.mean("recall")[places]).any())


_WORDS = {
    "recall": "recall: share of the exact Top-k kept",
    "mass": "mass: attention weight kept",
}


def _two_panels(curve: Curve, budget: Budget) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(11, 4.4))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=0.70, bottom=0.115, top=0.93, wspace=0.2)
    left.set_title(f"{curve.title}; k = {budget}")
    return figure, left, right


def _oracle_curves(
    axes: Axes, curve: Curve, budget: Budget, metric: str, scores: stats.Interval
) -> None:
    fidelity = curve.mean(metric)
    exact = curve.place(EXACT, budget)
    for (name, places), (dash, marker, color) in zip(
        oracle_families(curve, budget).items(), _ORACLES, strict=False
    ):
        line = places + ([exact] if exact is not None else [])
        line = sorted(line, key=lambda place: fidelity[place])
        style = {"ls": dash, "marker": marker, "color": color, "mfc": "white", "label": name}
        _with_intervals(axes, fidelity[line], scores, line, zorder=3, **style)


def oracle_families(curve: Curve, budget: Budget) -> dict[str, list[int]]:
    """The places of degraded(...) cells that differ in precision alone, by a name for the manner."""
    families: dict[str, list[int]] = {}
    for place in curve.where("oracle", budget=budget):
        indexer = curve.cells[place].indexer
        if isinstance(indexer, degraded):
            families.setdefault(_manner(indexer), []).append(place)
    return families


def _manner(oracle: degraded) -> str:
    """What is lost, what takes its place, how far a loss reaches."""
    words = [f"lost {oracle.miss}, filled {oracle.fill}"]
    named = {f.name: f.default for f in fields(oracle)}
    if (oracle.persist, oracle.per) != (named["persist"], named["per"]):
        words.append(f"for the whole {oracle.persist}, per {oracle.per}")
    return "oracle: " + ", ".join(words)


def _null(axes: Axes, curve: Curve, budget: Budget, metric: str) -> None:
    """p^m: what chance alone leaves of an m-token answer, each key lost anew with chance 1 - p."""
    exact = curve.place(EXACT, budget)
    if curve.measure != "exact_match" or exact is None:
        return
    p, m = np.linspace(0, 1, 200), curve.answer_tokens
    most = 1.0 if metric == "recall" else curve.mean("mass")[exact]
    name = f"null: $p^m$, answers of m = {m:.3g} tokens"
    axes.plot(p * most, p**m, color="0.2", ls=":", lw=1.4, label=name, zorder=2)


def _points(
    axes: Axes, curve: Curve, budget: Budget, x: Any, y: Any, scores: stats.Interval | None
) -> None:
    """Real and control cells, numbered as in the key; intervals where y is an accuracy."""
    shown = {p: e for p, e in entries(curve, budget).items() if np.isfinite(x[p] + y[p])}
    for place, entry in shown.items():
        if scores is not None:
            axes.vlines(
                x[place], scores.low[place], scores.high[place], color="0.55", lw=0.7, zorder=4
            )
        axes.plot(x[place], y[place], **_marker(entry), zorder=5)
    places = list(shown)
    label(axes, x[places], y[places], [str(shown[p].number) for p in places])


def _marker(entry: Entry) -> dict[str, Any]:
    return {
        "marker": entry.marker,
        "ms": 5.5,
        "mfc": entry.color,
        "mec": _INK,
        "mew": 0.6,
        "ls": "none",
    }


def _key(figure: Figure, curve: Curve, budget: Budget, lines: Sequence[tuple[Any, str]]) -> None:
    """Lines first, then the numbered points, in one column at the right."""
    numbered = [
        (Line2D([], [], **_marker(e)), f"{e.number}  {name_of(e.cell)}")
        for e in entries(curve, budget).values()
    ]
    handles, names = zip(*lines, *numbered, strict=True)
    names = [fill(name, 46, subsequent_indent="    ") for name in names]
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.705, 0.52), fontsize=7)


def by_head(curve: Curve, budget: Budget) -> Figure | None:
    """(c) Mean recall of each layer and head; a map a real indexer. None where there is nothing."""
    shown = [e for e in entries(curve, budget).values() if e.cell in curve.heads]
    if not shown:
        return None
    columns = min(len(shown), 6)
    rows = math.ceil(len(shown) / columns)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.titlesize": 7}):
        figure = Figure(figsize=(1.8 * columns + 0.9, 1.95 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for place, (axes, entry) in enumerate(zip(grid.flat, shown, strict=False)):
            recall = curve.heads[entry.cell]
            image = axes.imshow(recall, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            name = f"{entry.number}  {name_of(entry.cell)}"
            axes.set_title(fill(name, 26, max_lines=3, placeholder=" …"))
            axes.set_xticks(_ticks(recall.shape[1]))
            axes.set_yticks(_ticks(recall.shape[0]))
            if place % columns == 0:
                axes.set_ylabel("layer")
            if place + columns >= len(shown):
                axes.set_xlabel("query head")
        figure.colorbar(image, ax=figure.axes, label="mean recall", shrink=0.8, aspect=30)
    return figure


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, math.ceil(count / 8))))


def by_bytes(curve: Curve, budget: Budget) -> Figure | None:
    """(d) Bytes read to choose keys, a decoding step, against the fidelity that they buy.

    None where nothing was judged.
    """
    if not _judged(curve, budget):
        return None
    with drawing():
        figure, left, right = _two_panels(curve, budget)
        read = curve.mean("bytes_read") / 1024
        exact = curve.place(EXACT, budget)
        for axes, metric in ((left, "recall"), (right, "mass")):
            if exact is not None:
                axes.axvline(read[exact], color="0.35", lw=1, ls=(0, (5, 2)), label="every key")
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(left=-0.2, right=max(np.nanmax(read), 1) * 2)
            axes.set_ylim(-0.05, 1.09)
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.set_xlabel("KiB read to choose keys, a step and layer")
            axes.set_ylabel(_WORDS[metric])
            _points(axes, curve, budget, read, curve.mean(metric), None)
        lines, names = left.get_legend_handles_labels()
        _key(figure, curve, budget, list(zip(lines, names, strict=True)))
    return figure
