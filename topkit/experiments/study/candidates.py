"""Recipes at their budgets, each against exact Top-k or full attention on every task: who is shown to hold."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT, words_of
from topkit.experiments.study.noninferiority import Paired
from topkit.experiments.study.ranks import holm_levels
from topkit.experiments.study.stats import Array

HOLDS, UNDECIDED, FAILS = "holds", "undecided", "fails"
# Of studies in which some recipe is wrongly said to hold; and, apart, to fail.
ERROR = 0.05


@dataclass(frozen=True)
class OnTask:
    """A recipe's accuracy on a task at a length, that of what it is compared with, and what they differ by.

    paired: None where the other scores no more than the margin, so that nothing can be lost; levels: at which it was
    tested whether it holds, and whether it fails.
    """

    curve: Curve
    accuracy: float
    base: float
    paired: Paired | None
    levels: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.accuracy - self.base

    @cached_property
    def low(self) -> float:
        """The lower end of the difference: above minus the margin where it holds here."""
        return -1.0 if self.paired is None else self.paired.at_least(self.levels[0])

    @cached_property
    def high(self) -> float:
        """The upper end: below minus the margin where it fails here."""
        return 1.0 if self.paired is None else self.paired.at_most(self.levels[1])


@dataclass(frozen=True)
class Candidate:
    """A recipe at a budget: what it costs, what it is shown to do on all tasks, and how many haystacks would decide.

    bytes_read, index_bytes: of a layer, at a step; exact_bytes: what exact Top-k reads. NaN where nothing was
    observed. to_decide: of each task; None where it is decided, or no number would do.
    """

    cell: Cell
    word: str
    bytes_read: float
    index_bytes: float
    exact_bytes: float
    tasks: tuple[OnTask, ...]
    to_decide: int | None

    @property
    def cost(self) -> tuple[float, float, float]:
        """What is cheaper comes first: bytes read, then those of the index, then keys kept."""
        numbers = (
            self.bytes_read,
            self.index_bytes,
            float(self.cell.k(self.tasks[0].curve.length) or 0),
        )
        return tuple(np.inf if np.isnan(x) else x for x in numbers)  # type: ignore[return-value]

    @property
    def worst(self) -> OnTask:
        """The task that decides: on which it surely loses most where it fails, else on which it may lose most."""
        return min(
            self.tasks, key=lambda on: (on.high if self.word == FAILS else on.low, on.difference)
        )


@dataclass(frozen=True)
class _Rivals:
    """Where a recipe's cell and the other's stand in each curve."""

    cell: Cell
    places: tuple[tuple[Curve, int, int], ...]


def candidates(
    curves: Sequence[Curve], cells: Sequence[Cell], margin: float, dense: bool
) -> tuple[list[Candidate], list[str]]:
    """Each cell judged on all curves, the cheapest first; and a line for each that cannot be judged.

    dense: against full attention, else against exact Top-k at the cell's budget. A cell holds where it is shown on
    every curve to lose less than the margin, and fails where it is shown on one to lose more.
    """
    rivals, left_out = list[_Rivals](), list[str]()
    for cell in cells:
        found = _rivals(cell, curves, dense)
        if isinstance(found, str):
            left_out.append(found)
        else:
            rivals.append(found)
    pairs = [[_paired(*at, margin) for at in one.places] for one in rivals]
    # To hold, every task is needed, so that none is tested too often; to fail, one is enough.
    holds = np.array([max(p.holds(margin) if p else 1.0 for p in its) for its in pairs])
    fails = np.array([len(its) * min(p.fails(margin) if p else 1.0 for p in its) for its in pairs])
    levels = holm_levels(holds, ERROR), holm_levels(fails, ERROR)
    judged = [
        _judged(rivals[n], pairs[n], margin, (holds[n], fails[n]), (levels[0][n], levels[1][n]))
        for n in range(len(rivals))
    ]
    return sorted(judged, key=lambda one: one.cost), left_out


def _rivals(cell: Cell, curves: Sequence[Curve], dense: bool) -> _Rivals | str:
    places = list[tuple[Curve, int, int]]()
    for curve in curves:
        place = curve.place(cell.indexer, cell.budget)
        base = curve.place(None) if dense else curve.place(EXACT, cell.budget)
        if place is None:
            return f"{words_of(cell)} was not run on {curve.setting}"
        if base is None:
            other = "full attention" if dense else f"exact Top-k at k = {cell.budget}"
            return f"{words_of(cell)}: {other} was not run on {curve.setting}"
        if curve.trivial[place]:
            return f"{words_of(cell)}: k covers the whole context on {curve.setting}"
        if not np.isfinite(curve.rates[[place, base]]).all():
            return f"{words_of(cell)}: no accuracy on some haystacks of {curve.setting}"
        places.append((curve, place, base))
    return _Rivals(cell, tuple(places))


def _paired(curve: Curve, place: int, base: int, margin: float) -> Paired | None:
    """What two cells differ by; None where the other scores no more than the margin."""
    if _accuracy(curve, base) <= margin:
        return None
    return Paired.of(curve.rates[place], curve.rates[base], curve.trials)


def _judged(
    rivals: _Rivals,
    pairs: Sequence[Paired | None],
    margin: float,
    p: tuple[float, float],
    levels: tuple[float, float],
) -> Candidate:
    word = HOLDS if p[0] <= levels[0] else FAILS if p[1] <= levels[1] else UNDECIDED
    levels = levels[0], levels[1] / len(pairs)
    tasks = tuple(
        OnTask(curve, _accuracy(curve, place), _accuracy(curve, base), pair, levels)
        for (curve, place, base), pair in zip(rivals.places, pairs, strict=True)
    )
    read, index = (
        float(np.mean([curve.mean(name)[place] for curve, place, _ in rivals.places]))
        for name in ("bytes_read", "index_bytes")
    )
    exact = [curve.place(EXACT) for curve, _, _ in rivals.places]
    read_by_exact = [
        np.nan if at is None else curve.mean("bytes_read")[at]
        for (curve, _, _), at in zip(rivals.places, exact, strict=True)
    ]
    more = _to_decide(pairs, margin, *levels) if word == UNDECIDED else None
    return Candidate(rivals.cell, word, read, index, float(np.mean(read_by_exact)), tasks, more)


def _to_decide(
    pairs: Sequence[Paired | None], margin: float, to_hold: float, to_fail: float
) -> int | None:
    """Of each task: enough to show that it fails where one seems to, else that it holds on all."""
    if any(pair is None for pair in pairs):
        return None
    known = [pair for pair in pairs if pair is not None]
    losing = [pair.to_decide(margin, to_fail) for pair in known if pair.mean < -margin]
    if losing:
        return min((n for n in losing if n is not None), default=None)
    each = [pair.to_decide(margin, to_hold) for pair in known]
    return None if any(n is None for n in each) else max(n for n in each if n is not None)


def _accuracy(curve: Curve, place: int) -> float:
    weights: Array = curve.questions
    return float(curve.rates[place] @ weights / weights.sum())
