"""The figures of a leaderboard: accuracy and mass against the bytes that choosing reads, with their Pareto fronts."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.drawing import INK, Entry, drawing, entry_of, key, mark
from topkit.experiments.study.kinds import family_of
from topkit.experiments.study.labels import label
from topkit.experiments.study.ranks import front
from topkit.experiments.study.standings import Standings
from topkit.experiments.study.stats import Array
from topkit.indexers.base import Indexer

WORDS = {"accuracy": "accuracy", "mass": "mass: attention weight kept"}
CAPTION = (
    "Each recipe at the budgets of bytes, a line through them, the mean over k. The step is the Pareto front: "
    "what no other reaches at as few bytes. Dashed: exact Top-k, which reads every key."
)
BY_K = (
    "The same at each k: points are recipes at the budgets of bytes, the step is the Pareto front, whose recipes "
    "are numbered."
)
Numbered = Mapping[Indexer, Entry]


def numbered(boards: Sequence[Standings]) -> Numbered:
    """Every recipe, by family and then by name."""
    recipes = dict.fromkeys(recipe for board in boards for recipe in board.recipes)
    order = sorted(recipes, key=lambda recipe: (family_of(Cell(recipe)), repr(recipe)))
    return {recipe: entry_of(number, recipe) for number, recipe in enumerate(order, 1)}


def points(boards: Sequence[Standings], goal: str, k: int | None = None) -> tuple[Array, Array, list[Indexer]]:  # fmt: skip
    """Of all recipes at all budgets: the share of the keys' bytes that is read, what is reached, and by whom."""
    some = [board for board in boards if goal in board.goals]
    reads = [board.reads / board.key_bytes for board in some]
    gains = [b.goals[goal].means if k is None else b.goals[goal].values[:, k] for b in some]
    recipes = [recipe for board in some for recipe in board.recipes]
    none = np.zeros(0)
    return np.concatenate([none, *reads]), np.concatenate([none, *gains]), recipes


def by_bytes(boards: Sequence[Standings], marks: Numbered) -> Figure:
    """Accuracy above, mass below, of one model."""
    goals = _judged(boards)
    with drawing():
        figure = Figure(figsize=(11, max(4.0 * len(goals), 0.2 * len(marks) + 1.2)))
        grid = figure.subplots(len(goals), 1, squeeze=False, sharex=True)
        figure.subplots_adjust(left=0.07, right=0.66, bottom=0.07, top=0.96, hspace=0.08)
        for axes, goal in zip(grid.flat, goals, strict=True):
            _panel(axes, boards, goal)
            x, y, recipes = points(boards, goal)
            _lines(axes, x, y, recipes, marks)
        grid[-1, 0].set_xlabel("share of the keys' bytes that choosing reads, a step and layer")
        key(figure, [], marks.values())
    return figure


def _judged(boards: Sequence[Standings]) -> list[str]:
    return [goal for goal in WORDS if any(goal in board.goals for board in boards)]


def by_k(boards: Sequence[Standings], marks: Numbered) -> Figure:
    """A column for each k."""
    goals, ks = _judged(boards), boards[0].ks
    leading = {recipe for goal in goals for k in range(len(ks)) for recipe in _leading(boards, goal, k)}  # fmt: skip
    with drawing():
        figure = Figure(figsize=(11, max(3.2 * len(goals), 0.2 * len(leading) + 1.2)))
        grid = figure.subplots(len(goals), len(ks), squeeze=False, sharex=True, sharey="row")
        figure.subplots_adjust(left=0.06, right=0.69, bottom=0.08, top=0.94, hspace=0.1, wspace=0.08)  # fmt: skip
        for row, goal in enumerate(goals):
            for k, axes in enumerate(grid[row]):
                _panel(axes, boards, goal, k)
                x, y, recipes = points(boards, goal, k)
                for place, recipe in enumerate(recipes):
                    axes.plot(x[place], y[place], **{**mark(marks[recipe]), "ms": 4}, zorder=5)
                places = front(x, y)
                texts = [str(marks[recipes[place]].number) for place in places]
                label(axes, x[places], y[places], texts)
                if row == 0:
                    axes.set_title(f"k = {ks[k]}")
                if k:
                    axes.set_ylabel("")
        grid[-1, len(ks) // 2].set_xlabel("share of the keys' bytes that choosing reads, a step and layer")  # fmt: skip
        key(figure, [], [entry for recipe, entry in marks.items() if recipe in leading])
    return figure


def _leading(boards: Sequence[Standings], goal: str, k: int) -> list[Indexer]:
    x, y, recipes = points(boards, goal, k)
    return [recipes[place] for place in front(x, y)]


def _panel(axes: Axes, boards: Sequence[Standings], goal: str, k: int | None = None) -> None:
    """Scales, exact Top-k, and the front."""
    x, y, _ = points(boards, goal, k)
    exact = boards[0].exact.get(goal)
    if exact is not None and np.isfinite(exact).all():
        height = float(exact.mean() if k is None else exact[k])
        axes.axhline(height, color="0.35", lw=1, ls=(0, (5, 2)), zorder=1)
    axes.set_xscale("symlog", linthresh=0.02, linscale=0.5)
    axes.set_xlim(-0.003, 1)
    ticks = [0, 0.02, 0.04, 0.08, 0.18, 0.4, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel(WORDS[goal])
    places = front(x, y)
    steps = np.append(x[places], 1.0), np.append(y[places], y[places[-1]] if places else 0)
    axes.step(*steps, where="post", color=INK, lw=1.1, zorder=2)


def _lines(axes: Axes, x: Array, y: Array, recipes: Sequence[Indexer], marks: Numbered) -> None:
    """A thin line a recipe through its budgets; its number stands beside the last."""
    last: list[int] = []
    for recipe, entry in marks.items():
        places = [p for p, one in enumerate(recipes) if one == recipe and np.isfinite(x[p] + y[p])]
        if places:
            axes.plot(x[places], y[places], color=entry.color, lw=0.6, alpha=0.6, zorder=3)
            axes.plot(x[places], y[places], **mark(entry), zorder=5)
            last.append(places[-1])
    label(axes, x[last], y[last], [str(marks[recipes[place]].number) for place in last])
