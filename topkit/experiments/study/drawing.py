"""What the figures of a study share: style, marks of the cells, intervals, key."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from topkit.experiments.runs.cells import in_order
from topkit.experiments.study import stats
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT, kind_of
from topkit.experiments.study.labels import label
from topkit.experiments.study.stats import Array
from topkit.grammar import short
from topkit.indexers.base import Indexer
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
    # Maps of one axes stay apart.
    "image.composite_image": False,
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
    "channels": ("<", "#2a9d8f"),
    "clusters": (">", "#c44536"),
    "codes": ("p", "#5b8ac7"),
    "hashing": ("d", "#a0522d"),
    "votes": ("8", "#708238"),
    "layers": ("H", "#d08c60"),
    "steps": ("o", "#9d4edd"),
}


@dataclass(frozen=True)
class Entry:
    """How a numbered recipe is drawn, the same in every figure of a report."""

    number: int
    recipe: Indexer
    marker: str
    color: str

    @property
    def name(self) -> str:
        return f"{self.number}  {short(self.recipe)}"


Entries = Mapping[Indexer, Entry]


def entries(curves: Sequence[Curve]) -> Entries:
    """Every recipe of a run but exact Top-k and degraded(...), which have lines of their own.

    Numbered by kind, then by name.
    """
    cells = {
        cell
        for curve in curves
        for cell in curve.cells
        if not (cell.indexer is None or cell.indexer == EXACT or isinstance(cell.indexer, degraded))
    }
    kinds = ["real", "control", "oracle"]
    cells = sorted(in_order(cells), key=lambda cell: kinds.index(kind_of(cell)))
    recipes = dict.fromkeys(cell.indexer for cell in cells if cell.indexer is not None)
    return {recipe: entry_of(number, recipe) for number, recipe in enumerate(recipes, 1)}


def entry_of(number: int, recipe: Indexer) -> Entry:
    """A recipe of a number, in its family's mark."""
    return Entry(number, recipe, *_FAMILIES.get(recipe.family, ("o", "#555555")))


def shown(curve: Curve, budget: Budget, marks: Entries) -> dict[int, Entry]:
    """The numbered cells of a budget, by their place."""
    places = curve.where("real", "control", "oracle", budget=budget)
    numbered = {
        p: marks[r] for p in places if (r := curve.cells[p].indexer) in marks and r is not None
    }
    return dict(sorted(numbered.items(), key=lambda item: item[1].number))


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
    axes: Axes,
    numbered: Mapping[int, Entry],
    x: Array,
    y: Array,
    scores: stats.Interval | None,
) -> None:
    """Numbered cells, as in the key; intervals where y is an accuracy."""
    drawn = {p: e for p, e in numbered.items() if np.isfinite(x[p] + y[p])}
    places = list(drawn)
    if scores is not None:
        low, high = scores.low[places], scores.high[places]
        axes.vlines(x[places], low, high, color="0.55", lw=0.7, zorder=4)
    for place, entry in drawn.items():
        axes.plot(x[place], y[place], **mark(entry), zorder=5)
    label(axes, x[places], y[places], [str(drawn[p].number) for p in places])


def mark(entry: Entry) -> dict[str, Any]:
    return {
        "marker": entry.marker,
        "ms": 5.5,
        "mfc": entry.color,
        "mec": INK,
        "mew": 0.6,
        "ls": "none",
    }


def key(figure: Figure, lines: Sequence[tuple[Any, str]], numbered: Iterable[Entry]) -> None:
    """Lines first, then the numbered recipes, in one column at the right."""
    every = [*lines, *((Line2D([], [], **mark(entry)), entry.name) for entry in numbered)]
    handles = [handle for handle, _ in every]
    names = [fill(name, 46, subsequent_indent="    ") for _, name in every]
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.705, 0.52), fontsize=7)


def legend_lines(axes: Axes) -> list[tuple[Any, str]]:
    """What the key says of the lines that were drawn."""
    return list(zip(*axes.get_legend_handles_labels(), strict=True))
