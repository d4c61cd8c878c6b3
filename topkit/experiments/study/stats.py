"""Intervals and rank correlations of a study: pure functions of arrays.

rates [C, H]: a mean in 0..1 for each of C cells on each of H haystacks. questions [H]: how many
questions each mean is over, or tokens where each token is right or wrong. Those of one haystack are not
independent: haystacks are the units.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
# (scipy comes without types.)
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Estimates and the ends of their intervals: numbers, or arrays of one shape."""

    value: Array
    low: Array
    high: Array

    def __getitem__(self, at: int) -> Interval:
        return Interval(self.value[at], self.low[at], self.high[at])

    def __iter__(self) -> Iterator[float]:
        return iter((float(self.value), float(self.low), float(self.high)))

    @property
    def reach(self) -> Array:
        """Half the width."""
        return (self.high - self.low) / 2


def design_effect(rates: Array, questions: Array) -> float:
    """How many times the variance of a mean over questions exceeds that of independent ones.

    Pooled over the cells, since one alone says little, and one at 0 or 1 says nothing; at least 1.
    Where no cell says anything, each haystack counts as one question.
    """
    haystacks, total = len(questions), questions.sum()
    means = rates @ questions / total
    binomial = (means * (1 - means)).sum() / total
    if haystacks < 2 or binomial < 1e-12:
        return float(total / haystacks)
    shortfall = (rates - means[:, None]) * questions
    clustered = haystacks / (haystacks - 1) * (shortfall**2).sum() / total**2
    return max(1.0, float(clustered / binomial))


def accuracy(rates: Array, questions: Array, level: float = 0.95) -> Interval:
    """The mean of each cell [C], with Wilson's interval on the effective number of questions.

    A bootstrap gives no width to a cell at 0 or 1, and covers too little near them.
    """
    means = rates @ questions / questions.sum()
    n = questions.sum() / design_effect(rates, questions)
    z = stats.norm.ppf((1 + level) / 2)
    middle = (means + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * np.sqrt(means * (1 - means) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach, 1)
    return Interval(means, np.minimum(low, means), np.maximum(high, means))


def mean(values: Array, questions: Array, level: float = 0.95) -> Interval:
    """The mean of each cell [C] of a number without bounds, with Student's interval over haystacks.

    For paired differences, pass the values minus those of another cell. One haystack gives no
    interval: NaN.
    """
    haystacks, total = len(questions), questions.sum()
    means = values @ questions / total
    if haystacks < 2:
        return Interval(means, np.full_like(means, np.nan), np.full_like(means, np.nan))
    shortfall = (values - means[:, None]) * questions
    error = np.sqrt(haystacks / (haystacks - 1) * (shortfall**2).sum(1)) / total
    reach = stats.t.ppf((1 + level) / 2, haystacks - 1) * error
    return Interval(means, means - reach, means + reach)


def difference(rates: Array, questions: Array, base: int, level: float = 0.95) -> Interval:
    """Each cell's mean minus that of cell `base`, on the same haystacks [C].

    Source: Donner and Zou's way (Statistics in Medicine 2002, 2012) to join two intervals of
    correlated estimates, here those of `accuracy`, with the correlation over haystacks. Few haystacks
    estimate it badly, so the interval is widened by the ratio of Student's quantile to the normal's.
    """
    tail = (1 + level) / 2
    stretch = stats.t.ppf(tail, max(len(questions) - 1, 1)) / stats.norm.ppf(tail)
    each = accuracy(rates, questions, level)
    below, above = each.value - each.low, each.high - each.value
    # Cells that agree on all of few haystacks need not agree on the next: never quite one.
    together = np.minimum(_correlation(rates, questions, base), 1 - 1 / len(questions))
    gap = each.value - each.value[base]

    def joined(one: Array, other: float) -> Array:
        return stretch * np.sqrt(np.maximum(one**2 + other**2 - 2 * together * one * other, 0))

    low = np.maximum(gap - joined(below, above[base]), -1)
    high = np.minimum(gap + joined(above, below[base]), 1)
    low[base] = high[base] = 0.0
    return Interval(gap, low, high)


def _correlation(rates: Array, questions: Array, base: int) -> Array:
    """Pearson's, of each cell's haystack means with those of cell `base`; 0 where one is constant."""
    off = (rates - (rates @ questions / questions.sum())[:, None]) * np.sqrt(questions)
    norms = np.sqrt((off**2).sum(1))
    product = norms * norms[base]
    return np.divide(off @ off[base], product, out=np.zeros_like(product), where=product > 1e-12)


@dataclass(frozen=True)
class Ordering:
    """How well recall and mass order cells by accuracy: Spearman's correlations, and mass's minus recall's."""

    cells: int
    recall: Interval
    mass: Interval
    mass_less_recall: Interval


def ordering(
    recall: Array,
    mass: Array,
    rates: Array,
    questions: Array,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Ordering:
    """Spearman's correlation with accuracy over cells, of recall and of mass, all [C, H].

    Percentile intervals of a bootstrap that resamples haystacks and cells independently. Cells are
    resampled too, since a few indexers may be ordered by luck, which more haystacks would only repeat.
    Source of the crossed bootstrap: Owen, Annals of Applied Statistics 1 (2007).
    """
    cells, haystacks = rates.shape
    rng = np.random.default_rng(seed)
    picked = rng.integers(haystacks, size=(draws, haystacks))
    drawn = np.stack([np.bincount(row, minlength=haystacks) for row in picked]) * questions
    weights = np.vstack([questions, drawn])
    weights = weights / weights.sum(1, keepdims=True)
    which = np.vstack([np.arange(cells), rng.integers(cells, size=(draws, cells))])

    def ranks(values: Array) -> Array:
        means = np.take_along_axis(weights @ values.T, which, axis=1)
        # Rounded, so that equal cells stay equal in whatever order their sums are computed.
        return stats.rankdata(np.round(means, 9), axis=1)

    goal = ranks(rates)
    by_recall, by_mass = _pearson(ranks(recall), goal), _pearson(ranks(mass), goal)
    intervals = [_percentiles(x, level) for x in (by_recall, by_mass, by_mass - by_recall)]
    return Ordering(cells, *intervals)


def _pearson(a: Array, b: Array) -> Array:
    """Row by row; 0 where a row is constant: no order is shown then."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    product = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), product, out=np.zeros(len(a)), where=product > 1e-12)


def _percentiles(estimates: Array, level: float) -> Interval:
    """The first is the estimate, the others its resamples."""
    low, high = np.quantile(estimates[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimates[0], np.minimum(low, estimates[0]), np.maximum(high, estimates[0]))
