"""The figure (a) of a study: every recipe's accuracy against the keys that it kept."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkit.experiments.study import stats
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import (
    INK,
    Entries,
    accuracy_label,
    dense_line,
    drawing,
    key,
    legend_lines,
    mark,
    with_intervals,
)
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.labels import label
from topkit.experiments.study.manners import manner_words, style
from topkit.indexers.base import Indexer
from topkit.indexers.degraded import degraded

_TICK = 0.28  # inches apart, so that none covers another
_BOTTOM, _TOP, _KEY, _SIDE = 0.55, 0.35, 3.3, 0.6  # inches kept free


def by_budget(curves: Sequence[Curve], marks: Entries) -> Figure:
    """(a) Accuracy of each recipe against keys kept, full attention as a line; a panel a curve."""
    columns = min(len(curves), 2)
    rows = math.ceil(len(curves) / columns)
    height = max(rows * (4.4 if columns == 1 else 3.4), 0.19 * len(marks) + 1.2)
    with drawing():
        figure = Figure(figsize=(11, height))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        figure.subplots_adjust(
            left=_SIDE / 11,
            right=1 - _KEY / 11,
            bottom=_BOTTOM / height,
            top=1 - _TOP / height,
            hspace=0.4,
            wspace=0.12,
        )
        for axes in grid.flat[len(curves) :]:
            axes.remove()
        panels = list(zip(grid.flat, curves, strict=False))
        for axes, curve in panels:
            _panel(axes, curve, marks, int((11 - _KEY - _SIDE) / columns / _TICK))
        lines = {name: handle for axes, _ in panels for handle, name in legend_lines(axes)}
        key(figure, [(handle, name) for name, handle in lines.items()], marks.values())
        for axes, curve in panels:
            _numbers(axes, curve, marks)
    return figure


def _panel(axes: Axes, curve: Curve, marks: Entries, ticks: int) -> None:
    scores, kept = stats.accuracy(curve.rates, curve.trials), curve.kept
    dense = curve.place(None)
    if dense is not None:
        dense_line(axes, scores[dense])
    manners: dict[str, int] = {}
    numbered: list[int] = []
    for recipe, line in _lines(curve).items():
        if recipe == EXACT:
            with_intervals(
                axes, kept[line], scores, line, fmt="o-", color=INK, label="exact Top-k", zorder=6
            )
        elif isinstance(recipe, degraded):
            # Design points: at one budget they are drawn against fidelity alone.
            if len(line) > 1:
                name = manner_words(recipe)
                look = style(manners.setdefault(name, len(manners)))
                with_intervals(
                    axes, kept[line], scores, line, label=name, zorder=3, alpha=0.7, **look
                )
        else:
            look = mark(marks[recipe])
            look |= {"ls": "-", "color": look["mfc"], "lw": 1, "zorder": 5}
            axes.plot(kept[line], scores.value[line], **look)
            numbered += line
    low, high = scores.low[numbered], scores.high[numbered]
    axes.vlines(kept[numbered], low, high, color="0.55", lw=0.7, zorder=4)
    axes.set_title(curve.setting)
    axes.set_xscale("log", base=2)
    _ticks(axes, curve, ticks)
    axes.set_xlabel("keys kept, k (by each head)")
    axes.set_ylabel(accuracy_label(curve))
    axes.set_ylim(-0.05, 1.09)
    axes.set_yticks(np.linspace(0, 1, 6))


def _lines(curve: Curve) -> dict[Indexer, list[int]]:
    """The places of each recipe's cells, in the order of the keys that they kept."""
    lines: dict[Indexer, list[int]] = {}
    for place, cell in enumerate(curve.cells):
        if cell.indexer is not None and np.isfinite(curve.kept[place]):
            lines.setdefault(cell.indexer, []).append(place)
    return {recipe: sorted(line, key=lambda p: curve.kept[p]) for recipe, line in lines.items()}


def _ticks(axes: Axes, curve: Curve, most: int) -> None:
    """At each budget's k, which a budget in per cent names below; the crowded give way to what ran more often."""
    names, runs = dict[int, str](), dict[int, int]()
    for cell in curve.cells:
        k = cell.k(curve.length)
        if k is not None and cell.budget is not None:
            percent = f"\n{cell.budget}" if cell.budget.percent else ""
            runs[k] = runs.get(k, 0) + 1
            names[k] = max(names.get(k, ""), f"{k}{percent}", key=len)
    low, high = axes.get_xlim()
    apart, ticks = math.log2(high / low) / most, list[int]()
    for k in sorted(names, key=lambda k: (-runs[k], "%" not in names[k], k)):
        if all(abs(math.log2(k / other)) >= apart for other in ticks):
            ticks.append(k)
    ticks.sort()
    axes.set_xticks(ticks, [names[k] for k in ticks])
    axes.minorticks_off()


def _numbers(axes: Axes, curve: Curve, marks: Entries) -> None:
    """Each numbered recipe's number, beside the last point of its line."""
    last = {recipe: line[-1] for recipe, line in _lines(curve).items() if recipe in marks}
    places = list(last.values())
    accuracy = curve.rates @ curve.questions / curve.questions.sum()
    label(axes, curve.kept[places], accuracy[places], [str(marks[r].number) for r in last])
