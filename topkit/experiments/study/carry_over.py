"""Whether the order of indexers carries over from one model to another: pure functions of arrays.

A model's scores are strata, a task at a length each: rates [C, H], what C indexers reached on each of H
haystacks, more being better, and questions [H]. The C indexers of both models are the same, in one order.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (scipy comes without types.)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from topkit.experiments.study.ordering import pearson, percentiles
from topkit.experiments.study.stats import Array, Interval

Strata = Sequence[tuple[Array, Array]]


@dataclass(frozen=True)
class Agreement:
    """How far two models order indexers alike.

    spearman, kendall: over families, each the mean of its indexers; of_indexers: Spearman's over the
    indexers, whose families are drawn whole; halves: Spearman's over families of two halves of one model's
    own haystacks, of each model, which is what sampling alone leaves; move [C]: by how much more an
    indexer scores, against the base, with the second model than with the first.
    """

    families: int
    indexers: int
    spearman: Interval
    kendall: Interval
    of_indexers: Interval
    halves: tuple[float, float]
    first: Array
    second: Array
    move: Interval


def agreement(
    one: Strata,
    other: Strata,
    families: Sequence[str],
    base: tuple[Strata, Strata] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Rank agreement of two models' scores, and the indexers that move.

    base: strata of one row, exact Top-k's on the same haystacks; without it the indexers' mean. Percentile
    intervals of a bootstrap that draws the haystacks of each stratum, and families; moves draw haystacks
    alone. Widened by Student's quantile over the normal's, as in `ordering`.
    Source of the crossed bootstrap: Owen, Annals of Applied Statistics 1 (2007).
    """
    rng = np.random.default_rng(seed)
    first, first_base = _drawn(one, base and base[0], draws, rng)
    second, second_base = _drawn(other, base and base[1], draws, rng)
    of = np.unique(np.array(families), return_inverse=True)[1]
    count = int(of.max()) + 1
    which = np.vstack([np.arange(count), rng.integers(count, size=(draws, count))])
    a, b = (np.take_along_axis(_by_family(x, of), which, axis=1) for x in (first, second))
    haystacks = min(len(questions) for strata in (one, other) for _, questions in strata)
    moves = (second - second_base) - (first - first_base)
    return Agreement(
        count,
        len(families),
        percentiles(pearson(_ranks(a), _ranks(b)), count, level, 1),
        percentiles(_kendall(a, b), count, level, 1),
        percentiles(_of_indexers(first, second, of, which), count, level, 1),
        (_halves(one, of, rng), _halves(other, of, rng)),
        first[0] - first_base[0],
        second[0] - second_base[0],
        _each(moves, haystacks, level),
    )


def _drawn(
    strata: Strata, base: Strata | None, draws: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Means over strata of the indexers [1 + draws, C] and of the base [1 + draws, 1]; the estimate stands first."""
    means: list[Array] = []
    for place, (rates, questions) in enumerate(strata):
        rows = rates if base is None else np.vstack([rates, base[place][0]])
        haystacks = len(questions)
        picked = rng.integers(haystacks, size=(draws, haystacks))
        drawn = np.stack([np.bincount(row, minlength=haystacks) for row in picked]) * questions
        weights = np.vstack([questions, drawn])
        means.append(weights @ rows.T / weights.sum(1, keepdims=True))
    # Rounded, so that equal rows stay equal in whatever order their sums are computed.
    mean = np.round(np.mean(means, axis=0), 9)
    if base is None:
        return mean, mean.mean(1, keepdims=True)
    return mean[:, :-1], mean[:, -1:]


def _by_family(values: Array, of: NDArray[np.int64]) -> Array:
    """The mean of each family's indexers [n, F]."""
    member = (of[:, None] == np.arange(int(of.max()) + 1)).astype(float)
    return np.round(values @ (member / member.sum(0)), 9)


def _ranks(values: Array) -> Array:
    return scipy_stats.rankdata(values, axis=1)


def _kendall(a: Array, b: Array) -> Array:
    """Kendall's tau-b of each row; 0 where a row is constant."""
    above = np.triu_indices(a.shape[1], 1)
    one, two = (np.sign(x[:, above[0]] - x[:, above[1]]) for x in (a, b))
    product = np.sqrt(np.abs(one).sum(1) * np.abs(two).sum(1))
    return np.divide((one * two).sum(1), product, out=np.zeros(len(a)), where=product > 0)


def _of_indexers(a: Array, b: Array, of: NDArray[np.int64], which: NDArray[np.int64]) -> Array:
    """Spearman's over indexers, in each draw those of the families that were drawn."""
    members = [np.flatnonzero(of == family) for family in range(int(of.max()) + 1)]
    counts = np.bincount(of)[which].sum(1)
    rhos = np.empty(len(a))
    for count in np.unique(counts):  # draws of as many indexers go together
        draws = np.flatnonzero(counts == count)
        places = [np.concatenate([members[family] for family in which[draw]]) for draw in draws]
        one, two = (_ranks(np.take_along_axis(x[draws], np.array(places), 1)) for x in (a, b))
        rhos[draws] = pearson(one, two)
    return rhos


def _halves(
    strata: Strata, of: NDArray[np.int64], rng: np.random.Generator, splits: int = 50
) -> float:
    """Spearman's over families between halves of the haystacks, raised to their full number (Spearman, Brown)."""
    rhos: list[float] = []
    for _ in range(splits):
        sides: list[list[Array]] = [[], []]
        for rates, questions in strata:
            order = rng.permutation(len(questions))
            for side, places in zip(sides, np.array_split(order, 2), strict=True):
                weights = questions[places] / max(questions[places].sum(), 1e-12)
                side.append(rates[:, places] @ weights)
        a, b = (_by_family(np.mean(side, axis=0)[None], of) for side in sides)
        rhos.append(float(pearson(_ranks(a), _ranks(b))[0]))
    half = float(np.mean(rhos))
    return 2 * half / (1 + half) if half > 0 else half


def _each(drawn: Array, haystacks: int, level: float) -> Interval:
    """Percentile intervals of each column, the first row being the estimate."""
    value, tail = drawn[0], (1 + level) / 2
    low, high = np.quantile(drawn[1:], [1 - tail, tail], axis=0)
    wider = scipy_stats.t.ppf(tail, max(haystacks - 1, 1)) / scipy_stats.norm.ppf(tail)
    return Interval(
        value,
        value + wider * np.minimum(low - value, 0),
        value + wider * np.maximum(high - value, 0),
    )
