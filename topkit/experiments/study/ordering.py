"""How well fidelity orders and predicts accuracy: pure functions of arrays.

recall, mass, goal [C, H]: what C cells, or families of cells, reached on each of H haystacks, more being
better. questions [H]: how many questions each is the mean of. families: a name for each cell; those of one
family stand and fall together, so that families are the units.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
# (scipy comes without types.)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from topkit.experiments.study import stats
from topkit.experiments.study.stats import Array, Interval


@dataclass(frozen=True)
class Ordering:
    """Spearman's correlations with a goal, of recall, of mass, and of mass minus that of recall."""

    units: int
    recall: Interval
    mass: Interval
    mass_minus_recall: Interval


@dataclass(frozen=True)
class Prediction:
    """Mean error on a family left out, by recall, by mass, and by the mean of the other families."""

    families: int
    recall: Interval
    mass: Interval
    neither: Interval
    mass_minus_recall: Interval


def family_means(values: Array, families: Sequence[str]) -> Array:
    """One row a family, the mean of its cells' [F, H]; families stand in the order of their first cell."""
    names = list(dict.fromkeys(families))
    of = np.array([names.index(family) for family in families])
    return np.stack([values[of == number].mean(0) for number in range(len(names))])


def ordering(
    recall: Array,
    mass: Array,
    goal: Array,
    questions: Array,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Ordering:
    """Spearman's correlation of recall and of mass with the goal, over the rows.

    Percentile intervals of a bootstrap that resamples haystacks and rows independently. Rows, which are
    families, are resampled too, since a few may be ordered by luck, which more haystacks would only
    repeat; a bootstrap of few rows is too sure of them, so that Student's quantile over the normal's
    widens it.
    Source of the crossed bootstrap: Owen, Annals of Applied Statistics 1 (2007).
    """
    units, haystacks = goal.shape
    rng = np.random.default_rng(seed)
    picked = rng.integers(haystacks, size=(draws, haystacks))
    drawn = np.stack([np.bincount(row, minlength=haystacks) for row in picked]) * questions
    weights = np.vstack([questions, drawn])
    weights = weights / weights.sum(1, keepdims=True)
    which = np.vstack([np.arange(units), rng.integers(units, size=(draws, units))])

    def ranks(values: Array) -> Array:
        means = np.take_along_axis(weights @ values.T, which, axis=1)
        # Rounded, so that equal rows stay equal in whatever order their sums are computed.
        return scipy_stats.rankdata(np.round(means, 9), axis=1)

    wanted = ranks(goal)
    by_recall, by_mass = pearson(ranks(recall), wanted), pearson(ranks(mass), wanted)
    return Ordering(
        units,
        percentiles(by_recall, units, level, 1),
        percentiles(by_mass, units, level, 1),
        percentiles(by_mass - by_recall, units, level, 2),
    )


def pearson(a: Array, b: Array) -> Array:
    """Row by row; 0 where a row is constant: no order is shown then."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    product = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), product, out=np.zeros(len(a)), where=product > 1e-12)


def percentiles(estimates: Array, units: int, level: float, most: float) -> Interval:
    """The first is the estimate, the others its resamples; none is beyond `most`."""
    value, tail = estimates[0], (1 + level) / 2
    low, high = np.quantile(estimates[1:], [1 - tail, tail])
    wider = scipy_stats.t.ppf(tail, max(units - 2, 1)) / scipy_stats.norm.ppf(tail)
    low, high = (value + wider * np.array([min(low - value, 0), max(high - value, 0)])).clip(
        -most, most
    )
    return Interval(value, low, high)


def prediction(recall: Array, mass: Array, goal: Array, families: Sequence[str]) -> Prediction:
    """How far off each family's goal [C] is predicted by a curve through the other families.

    Each family counts once, and its error is the mean of its cells'; Student's intervals over families.
    """
    names = list(dict.fromkeys(families))
    errors = [
        left_out_errors(x, goal, np.array([names.index(family) for family in families]))
        for x in (recall, mass, np.zeros_like(goal))
    ]
    every = np.stack([*errors, errors[1] - errors[0]])
    means = stats.mean(every, np.ones(len(names)))
    return Prediction(len(names), *(means[place] for place in range(4)))


def left_out_errors(x: Array, goal: Array, of: NDArray[np.int64]) -> Array:
    """The mean error on each family [F] when the rest predict it; of [C]: the number of each cell's family."""
    errors = np.abs(left_out(x, goal, of) - goal)
    return np.bincount(of, errors) / np.bincount(of)


def left_out(x: Array, goal: Array, of: NDArray[np.int64]) -> Array:
    """What each cell's goal [C] is predicted to be by a curve of x that never falls, through other families."""
    made = np.empty_like(goal)
    for number in range(int(of.max()) + 1):
        rest = of != number
        weights = 1 / np.bincount(of)[of[rest]]
        made[~rest] = np.interp(x[~rest], *isotonic(x[rest], goal[rest], weights))
    return made


def isotonic(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """The places and heights of the best curve, in squares, that never falls.

    Source: pool adjacent violators (Ayer et al., Annals of Mathematical Statistics 26, 1955).
    """
    places, of = np.unique(x, return_inverse=True)
    weight = np.bincount(of, weights)
    pools: list[list[float]] = []  # height, weight, how many places
    for height, own in zip(np.bincount(of, weights * y) / weight, weight, strict=True):
        pools.append([float(height), float(own), 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            one, other = pools.pop(), pools.pop()
            total = one[1] + other[1]
            pools.append(
                [(one[0] * one[1] + other[0] * other[1]) / total, total, one[2] + other[2]]
            )
    return places, np.repeat([pool[0] for pool in pools], [int(pool[2]) for pool in pools])
