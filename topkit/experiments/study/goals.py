"""What recipes reach of a goal, accuracy or mass, and the ranks that it leaves open."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topkit.experiments.study.curve import Curve
from topkit.experiments.study.ranks import Ranks, Strata, best_of_family, ranks
from topkit.experiments.study.stats import Array

ACCURACY, MASS, RECALL = "accuracy", "mass", "recall"


@dataclass(frozen=True)
class Goal:
    """What recipes reach of one goal: values [C, K] by k, NaN where nothing was judged; ranks of those at `places`.

    families: their names, and their ranks by the best of each. haystacks: how many rank the recipes; family_haystacks:
    how many rank the families, whose best are chosen on the others.
    """

    values: Array
    places: tuple[int, ...]
    ranks: Ranks
    families: tuple[str, ...]
    of_families: Ranks
    haystacks: int
    family_haystacks: int

    @property
    def means(self) -> Array:
        """Over k [C]."""
        return self.values.mean(1)

    def rank(self, place: int) -> str:
        """A recipe's rank in words; "" for one that has none."""
        return self.ranks.words(self.places.index(place)) if place in self.places else ""


def _scores(curve: Curve, goal: str) -> Array:
    return curve.rates if goal == ACCURACY else curve.fidelity[goal]


def values(curves: Sequence[Curve], every: Sequence[list[list[int]]], goal: str) -> Array:
    """The mean over curves of what recipes reach at each k [C, K]."""
    means = [_scores(curve, goal) @ curve.questions / curve.questions.sum() for curve in curves]
    return np.array(
        [
            np.mean([mean[places[n]] for n, mean in enumerate(means)], axis=0) for places in every
        ]
    )  # fmt: skip


def goal_of(
    curves: Sequence[Curve],
    every: Sequence[list[list[int]]],
    families: Sequence[str],
    goal: str,
) -> Goal | None:
    """Ranks by the mean over k, haystack by haystack; None where nothing was judged."""
    if not every:
        return None
    strata = [
        (np.stack([_scores(curve, goal)[places[n]].mean(0) for places in every]), curve.questions)
        for n, curve in enumerate(curves)
    ]
    judged = np.logical_and.reduce([np.isfinite(scores).all(1) for scores, _ in strata])
    places = [int(place) for place in np.flatnonzero(judged)]
    if not places:
        return None
    kept = [(scores[places], questions) for scores, questions in strata]
    names, others = best_of_family(kept, [families[place] for place in places])
    return Goal(
        values(curves, every, goal),
        tuple(places),
        ranks(kept, counted=goal == ACCURACY),
        tuple(names),
        ranks(others, counted=goal == ACCURACY),
        _count(kept),
        _count(others),
    )


def _count(strata: Strata) -> int:
    return sum(len(questions) for _, questions in strata)
