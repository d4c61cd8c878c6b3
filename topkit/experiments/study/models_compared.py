"""Two models of a study side by side: which cells both have, whether their order agrees, in sentences."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from topkit.experiments.study.carry_over import Agreement, agreement
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT, family_of
from topkit.experiments.study.sentences import FEWEST, said
from topkit.experiments.study.stats import Array
from topkit.grammar import short
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget

# Where exact Top-k tells indexers apart; a curve that is nowhere so gives all its budgets.
BETWEEN = (0.3, 0.95)
# Moves that a sentence names.
_MOST = 6
# Accuracies that an indexer which fails may reach by chance.
_FLOOR = 0.01


@dataclass(frozen=True)
class Comparison:
    """Two models, what they are compared on, and how far they order its indexers alike.

    shared: whether the settings are the same ones; goal: what is compared, in a word.
    """

    models: tuple[str, str]
    curves: tuple[tuple[Curve, ...], tuple[Curve, ...]]
    budgets: tuple[tuple[Budget, ...], tuple[Budget, ...]]
    indexers: tuple[Indexer, ...]
    families: tuple[str, ...]
    goal: str
    shared: bool
    found: Agreement


def comparisons(curves: Sequence[Curve]) -> list[Comparison]:
    """A comparison for each two models, of right answers and of running text apart; none where little is shared."""
    models = list(dict.fromkeys(curve.model for curve in curves))
    made: list[Comparison | None] = []
    for pair in combinations(models, 2):
        for text in (False, True):
            sides = [
                [c for c in curves if c.model == model and c.running_text == text] for model in pair
            ]
            made.append(_compared((pair[0], pair[1]), *_shared(*sides)))
    return [one for one in made if one is not None]


def _shared(one: list[Curve], other: list[Curve]) -> tuple[list[Curve], list[Curve], bool]:
    """The settings that both have, else all of each."""

    def place(curve: Curve) -> tuple[str, int, str]:
        return curve.task, curve.length, curve.sparse_from

    both = {place(curve) for curve in one} & {place(curve) for curve in other}
    if not both:
        return one, other, False
    sides = [[curve for curve in side if place(curve) in both] for side in (one, other)]
    return sides[0], sides[1], True


def _compared(
    models: tuple[str, str], one: list[Curve], other: list[Curve], shared: bool
) -> Comparison | None:
    if not one or not other:
        return None
    budgets = [_budgets(side) for side in (one, other)]
    indexers = [
        indexer
        for indexer in dict.fromkeys(one[0].cells[p].indexer for p in one[0].where("real"))
        if indexer is not None
        and all(_has(side, indexer, ks) for side, ks in zip((one, other), budgets, strict=True))
    ]
    families = [_family(one[0], indexer) for indexer in indexers]
    if len(set(families)) < FEWEST or min(len(c.haystacks) for c in (*one, *other)) < 2:
        return None
    strata = [
        [(_goals(curve, indexers, ks), curve.questions) for curve in side]
        for side, ks in zip((one, other), budgets, strict=True)
    ]
    base = None
    if all(_has(side, EXACT, ks) for side, ks in zip((one, other), budgets, strict=True)):
        exact = [
            [(_goals(curve, [EXACT], ks), curve.questions) for curve in side]
            for side, ks in zip((one, other), budgets, strict=True)
        ]
        base = exact[0], exact[1]
    return Comparison(
        models,
        (tuple(one), tuple(other)),
        (budgets[0], budgets[1]),
        tuple(indexers),
        tuple(families),
        "minus NLL" if one[0].running_text else "accuracy",
        shared,
        agreement(strata[0], strata[1], families, base),
    )


def _budgets(curves: Sequence[Curve]) -> tuple[Budget, ...]:
    """Those at which most real indexers ran, and of them those at which exact Top-k tells them apart."""
    first = curves[0]
    runs = {
        budget: sum(all(_has([c], first.cells[p].indexer, [budget]) for c in curves) for p in first.where("real", budget=budget))
        for budget in first.budgets
    }  # fmt: skip
    most = [budget for budget in runs if runs[budget] == max(runs.values())]
    telling = [budget for budget in most if any(_tells(curve, budget) for curve in curves)]
    return tuple(telling or most)


def _tells(curve: Curve, budget: Budget) -> bool:
    place = curve.place(EXACT, budget)
    if place is None:
        return False
    mean = curve.rates[place] @ curve.questions / curve.questions.sum()
    return BETWEEN[0] <= mean <= BETWEEN[1]


def _has(curves: Sequence[Curve], indexer: Indexer | None, budgets: Sequence[Budget]) -> bool:
    return all(curve.place(indexer, budget) is not None for curve in curves for budget in budgets)


def _goals(curve: Curve, indexers: Sequence[Indexer], budgets: Sequence[Budget]) -> Array:
    """The mean over budgets of what each indexer reached on each haystack [C, H]."""
    values = -curve.losses["nll"] if curve.running_text else curve.rates
    known = [[curve.place(indexer, k) for k in budgets] for indexer in indexers]
    places = [[place for place in its if place is not None] for its in known]
    return np.stack([values[its].mean(0) for its in places])


def _family(curve: Curve, indexer: Indexer) -> str:
    return next(family_of(cell) for cell in curve.cells if cell.indexer == indexer)


def sentences(comparison: Comparison) -> Iterator[str]:
    """What is shown of two models, the order first, then what moves."""
    found, (one, other) = comparison.found, comparison.models
    yield (
        f"Does the order of indexers carry over from {one} to {other}? {_trend(comparison)} over {found.families} "
        f"families: Spearman's correlation of {comparison.goal} is {said(found.spearman)}, Kendall's "
        f"{said(found.kendall)} ({_where(comparison)}). Over the {found.indexers} indexers themselves Spearman's is "
        f"{said(found.of_indexers)}."
    )
    yield (
        f"With itself a model agrees at {found.halves[0]:.2f} ({one}) and {found.halves[1]:.2f} ({other}): Spearman's "
        "correlation between halves of its haystacks, raised to their full number. More cannot be expected."
    )
    moved = [
        c
        for c in _by_size(found)
        if (found.move.low[c] > 0 or found.move.high[c] < 0) and not _on_floor(comparison, c)
    ]
    if not moved:
        yield f"No indexer is shown to stand otherwise against exact Top-k with {other} than with {one}."
        return
    named = ", ".join(
        f"{short(comparison.indexers[c])} {said(found.move[c], signed=True)}" for c in moved[:_MOST]
    )
    most = f"; the {_MOST} that move most" if len(moved) > _MOST else ""
    yield (
        f"{len(moved)} of {found.indexers} indexers stand otherwise with {other} than with {one}{most} (gap in "
        f"{comparison.goal} to exact Top-k with {other} minus that with {one}, each interval by itself): {named}."
    )


def _on_floor(comparison: Comparison, c: int) -> bool:
    """Whether an indexer fails with both models, so that its gaps are exact Top-k's own scores."""
    sides = zip(comparison.curves, comparison.budgets, strict=True)
    means = [_goals(x, [comparison.indexers[c]], ks).mean() for side, ks in sides for x in side]
    return comparison.goal == "accuracy" and max(means) <= _FLOOR


def _trend(comparison: Comparison) -> str:
    _, low, high = comparison.found.spearman
    if low > 0:
        whole = float(comparison.found.spearman.value) >= 0.9
        return "It does" if whole else "In part"
    return "It is reversed" if high < 0 else "That is not shown"


def _where(comparison: Comparison) -> str:
    on = "on the settings of both" if comparison.shared else "each on settings of its own"
    at = "; ".join(
        f"{model} at k = {', '.join(map(str, ks))}"
        for model, ks in zip(comparison.models, comparison.budgets, strict=True)
    )
    return f"{on}: {at}"


def _by_size(found: Agreement) -> list[int]:
    """The indexers, those that move most first."""
    return np.argsort(-np.abs(found.move.value), kind="stable").tolist()
