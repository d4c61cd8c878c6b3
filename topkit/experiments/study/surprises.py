"""What a leaderboard shows that one would not expect, in sentences made from its ranks."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.goals import ACCURACY, MASS, Goal
from topkit.experiments.study.kinds import family_of
from topkit.experiments.study.standings import Standings
from topkit.grammar import short
from topkit.indexers.base import Indexer

# That a sentence names, of more.
_MOST = 6
# Recipes that are dearer and worse, below which there is no surprise.
_FEW = 3
BASELINES = ("control", "window")


def surprises(boards: Sequence[Standings], units: str = "haystacks") -> list[str]:
    """Of the boards of all models: only what tests show; one line where they show none."""
    lines = [
        line
        for board in boards
        for line in (*_frugal(board), *_below_baselines(board), *_parted(board))
    ]
    models = dict.fromkeys(board.model for board in boards)
    for pair in combinations(models, 2):
        lines += _moved(boards, *pair)
    return lines or [f"The {units} show none: no recipe is told apart from what one would expect."]


def _frugal(board: Standings) -> Iterator[str]:
    """Of each goal the recipe that is better than most that read twice as much."""
    for goal, its in board.goals.items():
        reads = board.reads[list(its.places)]
        real = np.array([board.families[place] not in BASELINES for place in its.places])
        dearer = its.ranks.above & (reads[None] >= 2 * reads[:, None]) & real[:, None]
        best = int(dearer.sum(1).argmax())
        if dearer[best].sum() >= _FEW:
            share = reads[best] / board.key_bytes
            names = _named([board.name(its.places[n]) for n in np.flatnonzero(dearer[best])])
            yield (
                f"{_where(board)}, by {goal}: `{board.name(its.places[best])}` reads {share:.3f} of the keys' bytes and "
                f"is better than {dearer[best].sum()} recipes that read at least twice as much: {names}."
            )


def _below_baselines(board: Standings) -> Iterator[str]:
    """Recipes that are not shown to be better than keys drawn at random, or than the ends of the context."""
    for goal, its in board.goals.items():
        families = [board.families[place] for place in its.places]
        for n, family in enumerate(families):
            if family not in BASELINES:
                continue
            name = _code(board.recipes[its.places[n]])
            under = [m for m in range(len(families)) if its.ranks.above[n, m] and families[m] not in BASELINES]  # fmt: skip
            if under:
                named = _named([board.name(its.places[m]) for m in under])
                yield f"{_where(board)}, by {goal}: {name}, which reads nothing, is better than {named}."


def _parted(board: Standings) -> Iterator[str]:
    """Recipes whose ranks by accuracy and by mass do not meet."""
    if ACCURACY not in board.goals or MASS not in board.goals:
        return
    one, other = board.goals[ACCURACY], board.goals[MASS]
    apart = [p for p in one.places if p in other.places and _disjoint(one, other, p)]
    if apart:
        named = _listed(
            f"`{board.name(p)}` ({one.rank(p)} by accuracy, {other.rank(p)} by mass)" for p in apart
        )
        yield f"{_where(board)}: mass ranks otherwise than accuracy {named}."


def _disjoint(one: Goal, other: Goal, place: int) -> bool:
    a, b = one.places.index(place), other.places.index(place)
    return bool(one.ranks.last[a] < other.ranks.first[b] or other.ranks.last[b] < one.ranks.first[a])  # fmt: skip


def _moved(boards: Sequence[Standings], one: str, other: str) -> Iterator[str]:
    """Families that are shown to stand in one order with a model, and in the reverse with the other."""
    for board in (b for b in boards if b.model == one):
        for twin in (b for b in boards if b.model == other and b.bytes == board.bytes):
            for goal in board.goals:
                if goal in twin.goals and (turned := _turned(board.goals[goal], twin.goals[goal])):
                    pairs = _listed(f"{a} above {b}" for a, b in turned)
                    yield (
                        f"{board.bytes}, families by {goal}: {pairs} with {one}, and the reverse with {other}."
                    )


def _turned(one: Goal, other: Goal) -> list[tuple[str, str]]:
    """Pairs of families of which each model shows another order."""
    shared = [name for name in one.families if name in other.families]
    first = {name: one.families.index(name) for name in shared}
    second = {name: other.families.index(name) for name in shared}
    return [
        (a, b)
        for a in shared
        for b in shared
        if one.of_families.above[first[a], first[b]] and other.of_families.above[second[b], second[a]]
    ]  # fmt: skip


def _where(board: Standings) -> str:
    return f"{board.model}{f', {board.bytes}' if board.bytes else ''}"


def _code(recipe: Indexer) -> str:
    return f"`{short(recipe)}` ({family_of(Cell(recipe))})"


def _named(names: Sequence[str]) -> str:
    return _listed(f"`{name}`" for name in names)


def _listed(words: Iterator[str] | Sequence[str]) -> str:
    every = list(words)
    more = f", and {len(every) - _MOST} more" if len(every) > _MOST else ""
    return ", ".join(every[:_MOST]) + more
