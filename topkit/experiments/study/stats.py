"""Intervals of a study: pure functions of arrays.

rates [C, H]: a mean in 0..1 for each of C cells on each of H haystacks. questions [H]: how many
questions each mean is over, or tokens where each token is right or wrong. Those of one haystack are not
independent: haystacks are the units. `tools/coverage.py` says how often the intervals hold the truth.
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


def design_effect(rates: Array, questions: Array) -> Array:
    """How many times the variance of each cell's mean exceeds that of independent questions [C].

    Each cell's own, shrunk by the weight of one question towards each haystack counting as one
    question: a cell at 0 or 1 says nothing of how its questions hang together, and may be decided by
    whole haystacks. What other cells do says nothing of this one: where few cells are decided by the
    wording of a haystack, and the others are not, an effect pooled over all is too small for the few.
    """
    total, haystacks = questions.sum(), len(questions)
    means = rates @ questions / total
    shortfall = (rates - means[:, None]) * questions
    # Both in squares of one question.
    clustered = haystacks / max(haystacks - 1, 1) * (shortfall**2).sum(1)
    independent = total * means * (1 - means)
    return (clustered + 1) / (independent + haystacks / total)


def _independent(rates: Array, questions: Array, level: float) -> Array:
    """The number of independent questions that say as much of each cell's mean [C].

    Less by the square of Student's quantile over the normal's, since few haystacks say little of their
    own spread.
    """
    student = _quantile(level, len(questions) - 1) / _quantile(level)
    return questions.sum() / (design_effect(rates, questions) * student**2)


def _quantile(level: float, freedom: int | None = None) -> float:
    """Student's, or without degrees of freedom the normal's."""
    tail = (1 + level) / 2
    return float(stats.norm.ppf(tail) if freedom is None else stats.t.ppf(tail, max(freedom, 1)))


def _wilson(means: Array, n: Array, level: float) -> Interval:
    """Wilson's interval of a rate over n questions (Journal of the ASA 22, 1927)."""
    z = _quantile(level)
    middle = (means + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * np.sqrt(means * (1 - means) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach, 1)
    return Interval(means, np.minimum(low, means), np.maximum(high, means))


def accuracy(rates: Array, questions: Array, level: float = 0.95) -> Interval:
    """The mean of each cell [C], with Wilson's interval on the effective number of questions.

    A bootstrap gives no width to a cell at 0 or 1, and covers too little near them. A haystack's mean
    lies in 0..1, so that it says at least as much as one question.
    """
    haystacks = questions.sum() ** 2 / (questions**2).sum()
    n = np.maximum(_independent(rates, questions, level), haystacks)
    return _wilson(rates @ questions / questions.sum(), n, level)


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
    reach = _quantile(level, haystacks - 1) * error
    return Interval(means, means - reach, means + reach)


def difference(rates: Array, questions: Array, base: int, level: float = 0.95) -> Interval:
    """Each cell's mean minus that of cell `base`, on the same haystacks [C].

    Source: Donner and Zou's way (Statistics in Medicine 2002, 2012) to join two intervals of
    correlated estimates, here Wilson's on the effective number of questions, with the correlation over
    haystacks.
    """
    means = rates @ questions / questions.sum()
    each = _wilson(means, _independent(rates, questions, level), level)
    below, above = each.value - each.low, each.high - each.value
    # Cells that agree on all of few haystacks need not agree on the next: never quite one.
    together = np.minimum(_correlation(rates, questions, base), 1 - 1 / len(questions))
    gap = each.value - each.value[base]

    def joined(one: Array, other: float) -> Array:
        return np.sqrt(np.maximum(one**2 + other**2 - 2 * together * one * other, 0))

    low = np.maximum(gap - joined(below, above[base]), -1)
    high = np.minimum(gap + joined(above, below[base]), 1)
    low[base] = high[base] = 0.0
    return Interval(gap, low, high)


def paired(rates: Array, questions: Array, base: int, level: float = 0.95) -> Interval:
    """Each cell's mean minus that of cell `base` [C], by what the two differ by on each haystack alone.

    Nothing is assumed of what both have in common, unlike `difference`.
    """
    gaps, share = rates - rates[base], questions / questions.sum()
    sizes = gaps**2 @ share, np.abs(gaps) @ share
    found = paired_ends(gaps @ share, *sizes, questions.sum() ** 2 / (questions**2).sum(), level)
    found.low[base] = found.high[base] = 0.0
    return found


def paired_ends(
    gap: Array, square: Array, size: Array, haystacks: float, level: float = 0.95
) -> Interval:
    """The interval of a mean difference per haystack, of its mean square and mean size.

    Ends solve n (gap - end)^2 = z^2 max(spread, step |end| - end^2) for n haystacks, z Student's: a score
    interval, whose variance is never less than an end of that size implies. step: how much a haystack loses
    where it loses, all of itself until haystacks say otherwise. Where none differ the width is about z^2 / n.
    Source: after Tango's interval of paired proportions (Statistics in Medicine 17, 1998).
    """
    n, z2 = haystacks, _quantile(level, round(haystacks) - 1) ** 2
    step = (n * square + 1) / (n * size + 1)
    spread = np.sqrt(z2 * np.maximum(square * n / max(n - 1, 1) - gap**2, 0) / n)

    def implied(gap: Array, sign: int) -> Array:
        """The largest end of a sign whose own variance allows it; minus infinity for none."""
        half = n * gap + sign * z2 * step / 2
        root = half**2 - (n + z2) * n * gap**2
        largest = (half + np.sqrt(np.maximum(root, 0))) / (n + z2)
        return np.where((root >= 0) & (sign * largest >= 0), largest, -np.inf)

    def end(gap: Array) -> Array:
        """The upper end, by whichever variance is the larger."""
        return np.minimum(np.max([gap + spread, implied(gap, 1), implied(gap, -1)], axis=0), 1)

    return Interval(gap, -end(-gap), end(gap))


def _correlation(rates: Array, questions: Array, base: int) -> Array:
    """Pearson's, of each cell's haystack means with those of cell `base`; 0 where one is constant."""
    off = (rates - (rates @ questions / questions.sum())[:, None]) * np.sqrt(questions)
    norms = np.sqrt((off**2).sum(1))
    product = norms * norms[base]
    return np.divide(off @ off[base], product, out=np.zeros_like(product), where=product > 1e-12)
