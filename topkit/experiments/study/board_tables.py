"""The tables of a leaderboard: recipes in their order, families, and the Pareto front in a line."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from topkit.experiments.study import board_figures as figures
from topkit.experiments.study.blocks import Table
from topkit.experiments.study.goals import ACCURACY, MASS, Goal
from topkit.experiments.study.ranks import front
from topkit.experiments.study.standings import Standings
from topkit.indexers.equal_bytes import NEAR

# Of recipes whose reads depend on the keys: they may be more than stated.
MORE = "*"
UNKNOWN = "not counted"
MORE_NOTE = (
    f"`{MORE}`: counted, more than {NEAR:.0%} above the budget: keys are not spread as evenly as its formula has them, or it "
    "states no cost."
)


def table(board: Standings) -> Table:
    """The recipes in their order by accuracy, by mass where there is none."""
    leading = board.goals[_leading([board])] if board.goals else None
    order = [leading.places[n] for n in leading.ranks.order] if leading else []
    order += [place for place in range(len(board.recipes)) if place not in order]
    columns = ["recipe", "family", "of the keys' bytes"]
    for goal, its in board.goals.items():
        ks = [f"at k = {k}" for k in board.ks] if len(board.ks) > 1 and its is leading else []
        columns += [f"rank by {goal}", goal, *ks]
    rows = [_row(board, place, leading) for place in order]
    return Table(columns, rows)


def _row(board: Standings, place: int, leading: Goal | None) -> list[str]:
    share = board.reads[place] / board.key_bytes
    read = f"{share:.3f}{MORE if place in beyond(board) else ''}" if np.isfinite(share) else UNKNOWN
    row = [f"`{board.name(place)}`", board.families[place], read]
    for goal, its in board.goals.items():
        digits = 2 if goal == ACCURACY else 3
        row += [its.rank(place), _number(its.means[place], digits)]
        if len(board.ks) > 1 and its is leading:
            row += [_number(value, digits) for value in its.values[place]]
    return row


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def front_line(boards: Sequence[Standings], goal: str) -> str:
    """The Pareto front of the mean over k, over all budgets, in a line."""
    reads, gains, _ = figures.points(boards, goal)
    names = [
        board.name(place)
        for board in boards
        if goal in board.goals
        for place in range(len(board.recipes))
    ]
    steps = [f"`{names[p]}` {gains[p]:.{2 if goal == ACCURACY else 3}f} at {reads[p]:.3f}" for p in front(reads, gains)]  # fmt: skip
    return f"{goal}, at the share of the keys' bytes read: {', '.join(steps)}." if steps else ""


def families(boards: Sequence[Standings]) -> Table:
    """Each family's rank by accuracy and by mass at each budget."""
    heads = [(board, goal, its) for board in boards for goal, its in board.goals.items()]
    names = dict.fromkeys(name for _, _, its in heads for name in its.families)
    leading = _leading(boards)
    columns = ["family", f"best recipe, by {leading}"]
    columns += [f"{goal}{f', {board.bytes}' if board.bytes else ''}" for board, goal, _ in heads]
    rows = [
        [name, _best(boards[-1], name, leading), *(_family(its, name, goal) for _, goal, its in heads)]
        for name in sorted(names, key=lambda name: [-_score(its, name) for _, _, its in heads[-2:]])
    ]  # fmt: skip
    return Table(columns, rows)


def _score(goal: Goal, family: str) -> float:
    there = family in goal.families
    return float(goal.of_families.scores[goal.families.index(family)]) if there else -1.0


def _family(goal: Goal, name: str, of: str) -> str:
    if name not in goal.families:
        return ""
    place = goal.families.index(name)
    score = _number(float(goal.of_families.scores[place]), 2 if of == ACCURACY else 3)
    return f"{goal.of_families.words(place)} ({score})"


def _leading(boards: Sequence[Standings]) -> str:
    """By what recipes are put in order: accuracy, and mass where nobody answered."""
    return ACCURACY if any(ACCURACY in board.goals for board in boards) else MASS


def _best(board: Standings, family: str, leading: str) -> str:
    """The best recipe of a family at the last budget, on all haystacks."""
    goal = board.goals.get(leading)
    places = [p for p in goal.places if board.families[p] == family] if goal else []
    if not goal or not places:
        return ""
    return f"`{board.name(max(places, key=lambda p: goal.means[p]))}`"


def beyond(board: Standings) -> list[int]:
    """The recipes that were counted to read more than the budget."""
    if not board.bytes:
        return []
    most = (1 + NEAR) * board.budget
    return [place for place, read in enumerate(board.reads) if read > most]
