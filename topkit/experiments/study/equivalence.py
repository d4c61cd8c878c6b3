"""The gate on a run: every cell of an indexer is as good as full attention."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence

from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.study.curves import Curve, words_of
from topkit.experiments.study.findings import MARGIN, Findings, judged, said
from topkit.grammar import quoted, short
from topkit.indexers.base import Indexer
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import parse


def require_equivalent(
    curves: Sequence[Curve], indexer: str, margin: float = MARGIN, budget: str | None = None
) -> str:
    """The paired differences in words, if every cell of an indexer is as good as full attention.

    Raises: GateFailed when a cell is worse; Undecided when none is, but one may be; InputError when
    there is no such cell, or nothing to compare it with.
    """
    recipe, k = _recipe(indexer, curves), None if budget is None else parse_budget(budget)
    verdicts: list[tuple[str, str]] = []
    for curve in curves:
        findings = Findings(curve, margin)
        for place, cell in enumerate(curve.cells):
            if cell.indexer != recipe or k not in (None, cell.budget):
                continue
            if findings.to_dense is None:
                raise InputError(f"{curve.title} was not run with full attention")
            gap = findings.to_dense[place]
            line = f"{words_of(cell)} on {curve.title}: {said(gap, signed=True)} to full attention"
            verdicts.append((judged(gap, margin), line))
    if not verdicts:
        at = "" if k is None else f" at k = {k}"
        raise InputError(
            f"no cell of {short(recipe)}{at} in this run; ask for one of: {_requirable(curves)}"
        )
    for verdict, error in (("worse", GateFailed), ("undecided", Undecided)):
        lines = [line for word, line in verdicts if word == verdict]
        if lines:
            raise error(f"{verdict} at a margin of {margin:g}: {'; '.join(lines)}")
    return f"as good at a margin of {margin:g}: {'; '.join(line for _, line in verdicts)}"


def _recipe(indexer: str, curves: Sequence[Curve]) -> Indexer:
    """The indexer of a spec, or of a name in the run's tables, whose class need not be installed."""
    recipes = [cell.indexer for curve in curves for cell in curve.cells]
    named = {repr(recipe): recipe for recipe in recipes if recipe is not None}
    return named[indexer] if indexer in named else parse(indexer)


def _requirable(curves: Sequence[Curve]) -> str:
    """The cells that can be required, as options of the command line."""
    cells = {cell for curve in curves for cell in curve.cells}
    return ", ".join(
        sorted(
            f"--require {quoted(cell.indexer)} -k {cell.budget}"
            for cell in cells
            if cell.indexer is not None
        )
    )
