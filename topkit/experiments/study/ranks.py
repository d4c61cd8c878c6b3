"""Ranks that admit ties: paired tests of all pairs with Holm's correction. Pure functions of arrays.

Strata, a task at a length each: scores [C, H], what C recipes reached on each of H haystacks, more being
better, and questions [H]. The C recipes are the same in all, in one order; haystacks are the units.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (scipy comes without types.)
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from topkit.experiments.study.stats import Array

Strata = Sequence[tuple[Array, Array]]
LEVEL = 0.95


@dataclass(frozen=True)
class Ranks:
    """Recipes in order: scores [C]; first and last [C], the ranks that each may have; above [C, C].

    above[a, b]: whether a is shown to be better than b. Of pairs that are alike in truth, any is said to
    differ in at most 1 - level of studies, so that the intervals of ranks hold all at once.
    """

    scores: Array
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    above: NDArray[np.bool_]

    @property
    def order(self) -> list[int]:
        """The places of the recipes, the best first; those of one score by their ranks."""
        return np.lexsort((self.last, self.first, -np.round(self.scores, 9))).tolist()

    def words(self, place: int) -> str:
        """A rank, or an interval of ranks: 3, 1 to 5."""
        first, last = int(self.first[place]), int(self.last[place])
        return str(first) if first == last else f"{first} to {last}"


def ranks(strata: Strata, level: float = LEVEL, counted: bool = True) -> Ranks:
    """The order of recipes by their mean over strata, and the ranks that the haystacks leave open.

    A rank's interval counts who is shown to be better, and who is shown to be worse. counted: as in `paired`.
    Source: rank intervals from all pairs, Mogstad, Romano, Shaikh and Wilhelm, Review of Economic Studies
    91 (2024); Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    scores = np.mean([x @ q / q.sum() for x, q in strata], axis=0)
    count = len(scores)
    one, other = np.triu_indices(count, 1)
    shown = holm(paired(strata, one, other, counted), 1 - level)
    above = np.zeros((count, count), dtype=bool)
    better = np.where(scores[one] > scores[other], one, other)
    worse = one + other - better
    above[better[shown], worse[shown]] = True
    return Ranks(scores, 1 + above.sum(0), count - above.sum(1), above)


def paired(
    strata: Strata, one: NDArray[np.int64], other: NDArray[np.int64], counted: bool = True
) -> Array:
    """The two-sided p-value of each pair's difference, over the haystacks of all strata.

    Student's test of paired differences, the variances of strata added, with Satterthwaite's degrees of
    freedom. counted: scores are shares of few answers, whose differences have few values. Then no p-value lies
    below that of the sign-flip test where all m haystacks that differ do so in one direction, 2^(1 - m): of few
    that differ, a small spread says nothing.
    """
    gaps, variances, freedoms, apart = [], [], [], np.zeros(len(one))
    for scores, questions in strata:
        haystacks, weights = len(questions), questions / questions.sum()
        gap = scores[one] - scores[other]
        mean = gap @ weights
        off = (gap - mean[:, None]) * weights
        gaps.append(mean)
        variances.append(haystacks / max(haystacks - 1, 1) * (off**2).sum(1))
        freedoms.append(haystacks - 1)
        apart += (np.abs(gap) > 1e-12).sum(1)
    each = np.stack(variances)
    mean, variance = np.mean(gaps, axis=0), each.sum(0) / len(gaps) ** 2
    shares = np.divide(each, each.sum(0), out=np.ones_like(each), where=each.sum(0) > 0)
    freedom = np.maximum(np.array(freedoms, dtype=float), 1)[:, None]
    freedom = 1 / (shares**2 / freedom).sum(0)
    error = np.sqrt(variance)
    t = np.divide(np.abs(mean), error, out=np.where(np.abs(mean) > 1e-12, np.inf, 0.0), where=error > 1e-12)  # fmt: skip
    # One haystack has no spread, and shows nothing.
    few = min(len(questions) for _, questions in strata) < 2
    p = np.ones(len(one)) if few else 2 * scipy_stats.t.sf(t, freedom)
    return np.minimum(np.maximum(p, 2.0 ** (1 - apart)), 1) if counted else p


def least_haystacks(recipes: int, level: float = LEVEL) -> int:
    """How many haystacks must differ, all one way, before `ranks` of counted scores can tell any two recipes apart.

    The least m with 2^(1 - m) <= (1 - level) / pairs, Holm's first level.
    """
    pairs = recipes * (recipes - 1) / 2
    return 1 + math.ceil(math.log2(max(pairs, 1) / (1 - level)))


def holm(p: Array, alpha: float) -> NDArray[np.bool_]:
    """Which of some hypotheses are rejected, so that any true one is in at most alpha of studies."""
    return p <= holm_levels(p, alpha)


def holm_levels(p: Array, alpha: float) -> Array:
    """The level at which each hypothesis is tested: alpha over those left, the last for all behind it."""
    order, steps = np.argsort(p, kind="stable"), alpha / (len(p) - np.arange(len(p)))
    passed = int(np.logical_and.accumulate(p[order] <= steps).sum())
    levels = np.empty(len(p))
    levels[order] = steps[np.minimum(np.arange(len(p)), passed)] if passed < len(p) else steps
    return levels


def best_of_family(strata: Strata, families: Sequence[str]) -> tuple[list[str], Strata]:
    """The families, and the scores of the best recipe of each: chosen on a third of the haystacks, scored on the others.

    The best of a family, since a weak relative takes nothing from it; chosen on haystacks that do not score it,
    since the best of many would be flattered by its own. Both ways round would use all haystacks twice, and finds a
    difference too often: who is chosen on one part hangs on what scores on the other. With one haystack alone the
    scores are those of its family's mean.
    """
    names = list(dict.fromkeys(families))
    members = [[c for c, family in enumerate(families) if family == name] for name in names]
    if min(len(questions) for _, questions in strata) < 2:
        return names, [(np.stack([x[its].mean(0) for its in members]), q) for x, q in strata]
    choosing = [np.arange(len(questions)) % 3 == 0 for _, questions in strata]
    sides = zip(strata, choosing, strict=True)
    means = np.mean([x[:, third] @ q[third] / q[third].sum() for (x, q), third in sides], axis=0)
    best = [max(its, key=lambda c: means[c]) for its in members]
    return names, [(x[best][:, ~third], q[~third]) for (x, q), third in zip(strata, choosing, strict=True)]  # fmt: skip


def front(cost: Array, gain: Array) -> list[int]:
    """The places of a Pareto front, the cheapest first: what no other reaches at as little cost.

    Of several alike in both, the first. NaN stands on no front.
    """
    places: list[int] = []
    order = np.lexsort((-gain, cost))
    for place in (int(p) for p in order if np.isfinite(cost[p] + gain[p])):
        if not places or gain[place] > gain[places[-1]]:
            places.append(place)
    return places
