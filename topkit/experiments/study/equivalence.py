"""The gate on a run: every cell of an indexer is as good as full attention, or as exact Top-k."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence

from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.runs.cells import DENSE
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import needed, plan
from topkit.experiments.study.intervals import MARGIN, Intervals
from topkit.experiments.study.kinds import EXACT, words_of
from topkit.experiments.study.sentences import BETTER, FLOOR, GOOD, UNDECIDED, WORSE, judged, said
from topkit.grammar import quoted, short
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budgets, parse_budgets
from topkit.indexers.spec import parse

AGAINST = {DENSE: "full attention", "exact": "exact Top-k at its budget"}


def require_equivalent(
    curves: Sequence[Curve],
    indexer: str,
    margin: float = MARGIN,
    budget: Budgets | None = None,
    against: str = DENSE,
) -> str:
    """The paired differences in words, if every cell of an indexer loses at most `margin`.

    against: `dense` is full attention, `exact` is exact Top-k at the cell's own budget, so that what the
    budget costs is no fault of the indexer's. budget: the cells of one or several budgets alone.
    Raises: GateFailed when a cell is worse; Undecided when none is, but one may be, or when what it is
    compared with scores no more than the margin; InputError when there is no such cell, or nothing to
    compare it with.
    """
    if against not in AGAINST:
        raise InputError(f"against must be dense or exact; got {against!r}")
    recipe = _recipe(indexer, curves)
    budgets = None if budget is None else parse_budgets(budget)
    verdicts: list[tuple[str, str]] = []
    for curve in curves:
        intervals = Intervals(curve, margin)
        for place, cell in enumerate(curve.cells):
            if cell.indexer == recipe and (budgets is None or cell.budget in budgets):
                verdicts.append(_verdict(intervals, place, against))
    named = {cell.budget for curve in curves for cell in curve.cells if cell.indexer == recipe}
    missing = [k for k in budgets or () if k not in named]
    if missing or not verdicts:
        at = f" at k = {', '.join(map(str, missing))}" if missing else ""
        raise InputError(
            f"no cell of {short(recipe)}{at} in this run; ask for one of: {_requirable(curves, recipe)}"
        )
    for words, error in (((WORSE,), GateFailed), ((UNDECIDED, FLOOR), Undecided)):
        lines = [line for word, line in verdicts if word in words]
        if lines:
            raise error(f"{words[0]} at a margin of {margin:g}: {'; '.join(lines)}")
    assert all(word in (GOOD, BETTER) for word, _ in verdicts)
    return f"as good at a margin of {margin:g}: {'; '.join(line for _, line in verdicts)}"


def _verdict(intervals: Intervals, place: int, against: str) -> tuple[str, str]:
    """In a word, and in a line that says the difference."""
    curve, cell = intervals.curve, intervals.curve.cells[place]
    base = curve.place(EXACT, cell.budget) if against == "exact" else curve.place(None)
    if base is None:
        what = f"exact Top-k at k = {cell.budget}" if against == "exact" else "full attention"
        other = "dense" if against == "exact" else "exact"
        raise InputError(
            f"{curve.title} was not run with {what}; run it too, or compare --against {other}"
        )
    gap = intervals.against(base)[place]
    score = float(intervals.accuracy.value[base])
    word = judged(gap, intervals.margin, score)
    # Of a small margin, one digit beyond its own.
    gap_said = said(gap, signed=True, digits=2 if intervals.margin >= 0.05 else 3)
    line = f"{words_of(cell)} on {curve.title}: {gap_said} to {AGAINST[against]}"
    if word == FLOOR:
        line += f", which scores {score:.2f}: no loss of {intervals.margin:g} could show"
    if word == UNDECIDED:
        count = needed(curve, place, base, intervals.margin)
        line += f" ({plan(count, len(curve.haystacks))})"
    return word, line


def _recipe(indexer: str, curves: Sequence[Curve]) -> Indexer:
    """The indexer of a spec, or of a name in the run's tables, whose class need not be installed."""
    recipes = [cell.indexer for curve in curves for cell in curve.cells]
    named = {repr(recipe): recipe for recipe in recipes if recipe is not None}
    return named[indexer] if indexer in named else parse(indexer)


def _requirable(curves: Sequence[Curve], recipe: Indexer) -> str:
    """The cells that can be required, those of the recipe where there are any, as command line options."""
    cells = {cell for curve in curves for cell in curve.cells}
    cells = {cell for cell in cells if cell.indexer == recipe} or cells
    return ", ".join(
        sorted(
            f"--require {quoted(cell.indexer)} -k {cell.budget}"
            for cell in cells
            if cell.indexer is not None
        )
    )
