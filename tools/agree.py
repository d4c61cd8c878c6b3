"""Say whether two runs agree, cell by cell: python tools/agree.py RUN_A RUN_B."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from topkit.cli.exits import exit_code
from topkit.cli.listing import markdown
from topkit.errors import GateFailed, InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.curves import load
from topkit.experiments.study.kinds import words_of
from topkit.experiments.study.sentences import said
from topkit.experiments.study.stats import Interval, accuracy


def compared(ours: Sequence[Curve], theirs: Sequence[Curve]) -> list[dict[str, str]]:
    """A row a cell that both hold: the two accuracies, and whether one truth may stand behind them.

    The difference is judged at 95 % over all cells together (Bonferroni), as if no haystack were in
    both runs: those that are bring the runs together, and a difference that shows is one all the more.
    Raises: InputError when no cell is in both.
    """
    both = [
        (a, b, cell)
        for a in ours
        for b in theirs
        if a.title == b.title
        for cell in a.cells
        if cell in b.cells
    ]
    if not both:
        raise InputError("the runs have no cell in common; give two runs of one task and length")
    rows = []
    for a, b, cell in both:
        one, other = (_accuracy(curve, cell, 0.95) for curve in (a, b))
        gap = _gap(*(_accuracy(curve, cell, 1 - 0.05 / len(both)) for curve in (a, b)))
        rows.append(
            {
                "task": a.title,
                "cell": words_of(cell),
                "A": said(one),
                "B": said(other),
                "A in B's": _word(other.low <= one.value <= other.high),
                "A - B": said(gap, signed=True),
                "may be 0": _word(gap.low <= 0 <= gap.high),
            }
        )
    return rows


def _accuracy(curve: Curve, cell: Cell, level: float) -> Interval:
    return accuracy(curve.rates, curve.questions, level)[curve.cells.index(cell)]


def _gap(one: Interval, other: Interval) -> Interval:
    """The difference of two estimates that know nothing of each other (Donner and Zou)."""
    value = one.value - other.value
    below = np.hypot(one.value - one.low, other.high - other.value)
    above = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - below, value + above)


def _word(yes: object) -> str:
    return "yes" if yes else "NO"


def main(runs: Sequence[str]) -> None:
    if len(runs) != 2:
        raise InputError("give two runs: python tools/agree.py RUN_A RUN_B")
    rows = compared(*(load(Path(run)) for run in runs))
    print(markdown(rows))
    inside = sum(row["A in B's"] == "yes" for row in rows)
    apart = sum(row["may be 0"] == "NO" for row in rows)
    print(
        f"\n{len(rows)} cells: A lies in B's interval in {inside}; {apart} differ at 95 % over all"
    )
    if apart:
        raise GateFailed(f"{apart} of {len(rows)} cells differ")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
