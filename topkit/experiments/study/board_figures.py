"""The figures of a leaderboard: accuracy and mass against the bytes that choosing reads, with their Pareto fronts."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.cell_rows import EXACT_NAME, Row, family, label_of, shortened
from topkit.experiments.study.drawing import HEIGHT, INK, WIDTH, by_family, layered
from topkit.experiments.study.ranks import front
from topkit.experiments.study.standings import Standings
from topkit.experiments.study.stats import Array
from topkit.indexers.base import Indexer

WORDS = {
    "accuracy": "accuracy",
    "mass": "mass: attention weight kept",
    "recall": "recall: share of the exact Top-k",
}
CAPTION = (
    "Each recipe at the budgets of bytes, a line through them, the mean over k. The step is the Pareto front: "
    "what no other reaches at as few bytes. Dashed: exact Top-k, which reads every key."
)
BY_K = (
    "The same at each k: points are recipes at the budgets of bytes, the step is the Pareto front, whose recipes "
    "are named as they ran."
)
READS = "share of the keys' bytes that choosing reads, a step and layer"
# Of a narrow panel.
READS_SHORT = "share of the keys' bytes read"
_TICKS = [0, 0.02, 0.04, 0.08, 0.18, 0.4, 1]


def points(boards: Sequence[Standings], goal: str, k: int | None = None) -> tuple[Array, Array, list[Indexer]]:  # fmt: skip
    """Of all recipes at all budgets: the share of the keys' bytes that is read, what is reached, and by whom."""
    some = [board for board in boards if goal in board.goals]
    reads = [board.reads / board.key_bytes for board in some]
    gains = [b.goals[goal].means if k is None else b.goals[goal].values[:, k] for b in some]
    recipes = [recipe for board in some for recipe in board.recipes]
    none = np.zeros(0)
    return np.concatenate([none, *reads]), np.concatenate([none, *gains]), recipes


def goals_of(boards: Sequence[Standings]) -> list[str]:
    """The goals that anything was judged by."""
    return [goal for goal in WORDS if any(goal in board.goals for board in boards)]


def board_rows(boards: Sequence[Standings], goal: str, k: int | None = None) -> list[Row]:
    """A row a recipe at a budget of bytes, and one of exact Top-k; front: on the Pareto front."""
    x, y, recipes = points(boards, goal, k)
    names = [board.name(p) for board in boards if goal in board.goals for p in range(len(board.recipes))]  # fmt: skip
    bytes_ = [board.bytes for board in boards if goal in board.goals for _ in board.recipes]
    at, on = "" if k is None else f"k = {boards[0].ks[k]}", set(front(x, y))
    rows: list[Row] = []
    for n, recipe in enumerate(recipes):
        if np.isfinite(x[n] + y[n]):
            cell = Cell(recipe)
            rows.append(
                {"name": label_of(cell), "label": shortened(label_of(cell)), "ran": names[n], "point": shortened(names[n]), "kind": "recipe", "family": family(cell), "bytes": bytes_[n],
                 "share": round(float(x[n]), 4), "gain": round(float(y[n]), 4), "front": n in on, "k": at}
            )  # fmt: skip
    ends = {row["name"]: n for n, row in sorted(enumerate(rows), key=lambda at: at[1]["share"])}
    for n, row in enumerate(rows):
        row["last"] = ends[row["name"]] == n
    exact = boards[0].exact.get(goal)
    if exact is not None and np.isfinite(exact).all():
        level = round(float(exact.mean() if k is None else exact[k]), 4)
        rows.append({"name": EXACT_NAME, "kind": "exact", "family": "exact", "gain": level, "k": at, "front": False})  # fmt: skip
    return rows


def by_bytes(
    names: Sequence[str], goal: str, legend: bool = False, rows: str = "cells"
) -> alt.LayerChart:
    """A line a recipe through its budgets of bytes, named at its end; rows: the name of the data."""
    base = alt.Chart(alt.NamedData(rows))
    return layered(_layers(base, names, goal, "last", legend)).properties(width=WIDTH, height=HEIGHT)  # fmt: skip


def at_k(names: Sequence[str], goal: str) -> alt.LayerChart:
    """The same at one k: points, those of the front named as they ran."""
    base = alt.Chart(alt.NamedData("cells"))
    return layered(_layers(base, names, goal, "front", False)).properties(width=WIDTH, height=260)  # fmt: skip


def by_k(
    names: Sequence[str], goal: str, ks: Sequence[str], legend: bool = False
) -> alt.FacetChart:
    """A column a k, in the order of ks."""
    chart = layered(_layers(alt.Chart(), names, goal, "front", legend)).properties(width=300, height=260)  # fmt: skip
    return chart.facet(
        alt.Facet("k:N", sort=[f"k = {k}" for k in ks], title=None), data=alt.NamedData(goal)
    )


def _layers(base: alt.Chart, names: Sequence[str], goal: str, named: str, legend: bool) -> list[alt.Chart]:  # fmt: skip
    title, text = (READS_SHORT, "point:N") if named == "front" else (READS, "label:N")
    x = alt.X("share:Q", title=title).scale(type="symlog", constant=0.02, domain=[0, 1], nice=False)
    x = x.axis(values=_TICKS, format="~g")
    y = alt.Y("gain:Q", title=WORDS[goal]).scale(nice=True, zero=True)
    recipes = base.transform_filter("datum.kind == 'recipe'")
    look = by_family(names, legend)
    exact = base.transform_filter("datum.kind == 'exact'")
    step = base.transform_filter("datum.front").mark_line(
        color=INK, opacity=0.7, strokeWidth=1.3, interpolate="step-after"
    )
    lines = recipes.mark_line(strokeWidth=0.8, opacity=0.6)
    dots = recipes.properties(name=f"dots_{goal}").mark_point(size=50, strokeWidth=1.3)
    words = recipes.transform_filter(f"datum.{named}").properties(name=f"names_{goal}")
    hover = [
        alt.Tooltip("ran:N", title="recipe"),
        alt.Tooltip("bytes:N", title="budget"),
        alt.Tooltip("share:Q", title="of the keys' bytes", format=".3f"),
        alt.Tooltip("gain:Q", title=goal, format=".3f"),
    ]
    through = [] if named == "front" else [
        lines.encode(x, y, stroke=look["stroke"], detail=alt.Detail("name:N"), order=alt.Order("share:Q"))
    ]  # fmt: skip
    return [
        exact.mark_rule(color=INK, strokeDash=[6, 3], opacity=0.7).encode(y=y),
        step.encode(x, y, order=alt.Order("share:Q")),
        *through,
        dots.encode(x, y, fillOpacity=alt.FillOpacityValue(0.7), tooltip=hover, **look),
        words.mark_text(fontSize=10.5).encode(x, y, text=text),
    ]
