"""The figures of a study: accuracy against budget and fidelity, recall by head, bytes against fidelity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkit.experiments.study import stats
from topkit.experiments.study.curves import EXACT, Curve, name_of
from topkit.experiments.study.drawing import (
    INK,
    STYLE,
    accuracy_label,
    dense_line,
    drawing,
    entries,
    key,
    points,
    two_panels,
    with_intervals,
)
from topkit.indexers.budget import Budget
from topkit.indexers.degraded import degraded

_ORACLES = (
    ("-", "o", "#111111"),
    ("--", "s", "#3b6fb6"),
    ("-.", "^", "#c2571a"),
    ((0, (6, 1.5, 1, 1.5, 1, 1.5)), "D", "#5a9367"),
    ((0, (3, 1)), "v", "#8e3b7a"),
    ((0, (1.5, 1)), "P", "#8c8c8c"),
    ((0, (8, 3)), "X", "#b08900"),
)


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
            axes.set_ylabel(accuracy_label(curve))
        grid.flat[0].legend(loc="lower right")
    return figure


def _exact_line(axes: Axes, curve: Curve) -> None:
    scores = stats.accuracy(curve.rates, curve.trials)
    dense = curve.place(None)
    if dense is not None:
        dense_line(axes, scores[dense])
    places = [p for p in curve.where("oracle") if curve.cells[p].indexer == EXACT]
    amounts = [curve.cells[p].budget.amount for p in places]  # type: ignore[union-attr]
    with_intervals(axes, amounts, scores, places, fmt="o-", color=INK, label="exact Top-k")
    axes.set_xscale("log", base=2)
    axes.set_xticks(amounts, [f"{x:g}" for x in amounts])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)


def _percent(curve: Curve) -> str:
    percent = curve.budget is not None and curve.budget.percent
    return " (% of the context)" if percent else " (by each head)"


def by_fidelity(curve: Curve, budget: Budget) -> Figure | None:
    """(b) Accuracy against recall and against mass: oracles as curves, real indexers as points.

    None where nothing was judged.
    """
    if not _judged(curve, budget):
        return None
    with drawing():
        figure, left, right = two_panels(curve, budget)
        scores = stats.accuracy(curve.rates, curve.trials)
        for axes, metric in ((left, "recall"), (right, "mass")):
            dense = curve.place(None)
            if dense is not None:
                dense_line(axes, scores[dense])
            _oracle_curves(axes, curve, budget, metric, scores)
            _null(axes, curve, budget, metric)
            # Recall may be 1; k keys hold a share of the mass, and its differences are to be seen.
            most = 1.0 if metric == "recall" else np.nanmax(curve.mean(metric), initial=0.01)
            axes.set_xlim(-0.03 * most, 1.04 * most)
            axes.set_ylim(-0.05, 1.09)
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.set_xlabel(_WORDS[metric])
            axes.set_ylabel(accuracy_label(curve))
        lines, names = left.get_legend_handles_labels()
        for axes, metric in ((left, "recall"), (right, "mass")):
            points(axes, curve, budget, curve.mean(metric), scores.value, scores)
        key(figure, curve, budget, list(zip(lines, names, strict=True)))
    return figure


def _judged(curve: Curve, budget: Budget) -> bool:
    """Whether any cell has a fidelity to draw: none has where k covers all that is visible."""
    places = curve.where("oracle", "real", "control", budget=budget)
    return bool(np.isfinite(curve.mean("recall")[places]).any())


_WORDS = {
    "recall": "recall: share of the exact Top-k kept",
    "mass": "mass: attention weight kept",
}


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
        with_intervals(axes, fidelity[line], scores, line, zorder=3, **style)


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
        figure, left, right = two_panels(curve, budget)
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
            points(axes, curve, budget, read, curve.mean(metric), None)
        lines, names = left.get_legend_handles_labels()
        key(figure, curve, budget, list(zip(lines, names, strict=True)))
    return figure
