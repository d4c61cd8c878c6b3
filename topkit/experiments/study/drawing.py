"""What the figures of a study share: style, marks of the cells, intervals, key."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study import stats
from topkit.experiments.study.curves import Curve, name_of
from topkit.experiments.study.labels import label
from topkit.indexers.budget import Budget

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
INK = "#111111"
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


def accuracy_label(curve: Curve) -> str:
    return f"accuracy ({curve.measure.replace('_', ' ')})"


def dense_line(axes: Axes, score: stats.Interval) -> None:
    value, low, high = score
    axes.axhline(value, color="0.35", lw=1, ls=(0, (5, 2)), label="full attention", zorder=1)
    axes.axhspan(low, high, color="0.5", alpha=0.14, lw=0, zorder=0)


def with_intervals(
    axes: Axes, x: Any, scores: stats.Interval, places: Sequence[int], **style: Any
) -> None:
    y = scores.value[places]
    errors = np.clip([y - scores.low[places], scores.high[places] - y], 0, None)
    axes.errorbar(x, y, errors, ms=4, lw=1.2, elinewidth=0.7, capsize=1.5, **style)


def two_panels(curve: Curve, budget: Budget) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(11, 4.4))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=0.70, bottom=0.115, top=0.93, wspace=0.2)
    left.set_title(f"{curve.title}; k = {budget}")
    return figure, left, right


def points(
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
        "mec": INK,
        "mew": 0.6,
        "ls": "none",
    }


def key(figure: Figure, curve: Curve, budget: Budget, lines: Sequence[tuple[Any, str]]) -> None:
    """Lines first, then the numbered points, in one column at the right."""
    numbered = [
        (Line2D([], [], **_marker(e)), f"{e.number}  {name_of(e.cell)}")
        for e in entries(curve, budget).values()
    ]
    handles, names = zip(*lines, *numbered, strict=True)
    names = [fill(name, 46, subsequent_indent="    ") for name in names]
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.705, 0.52), fontsize=7)
