"""Whether a recipe loses no more than a margin against another: paired by haystack. Pure functions of arrays.

rates [H]: the mean of each haystack in 0..1; trials [H]: how many questions, or tokens, each mean is over.
Haystacks are the units.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (scipy comes without types.)
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from topkit.experiments.study.stats import Array

POWER = 0.8
MOST = 100_000  # haystacks that anybody would ask


@dataclass(frozen=True)
class Paired:
    """What two recipes differ by, told as if of independent questions.

    n: so many; lost and won of them; mean: won minus lost, a question; haystacks: how many.
    """

    n: float
    lost: float
    won: float
    mean: float
    haystacks: int

    @staticmethod
    def of(rates: Array, base: Array, trials: Array) -> Paired:
        """From the rates of a recipe and of what it is compared with.

        Questions of a haystack that are lost together count as one: n is the number of questions over the
        size of a loss or gain, sum(D^2) / sum(|D|) for the net number of questions D of each haystack,
        with the weight of one question that each haystack counting as one has. Where no haystack differs, n
        is the number of haystacks.
        """
        net = (rates - base) * trials
        sizes, haystacks, total = np.abs(net), len(trials), float(trials.sum())
        size = max((float((net**2).sum()) + 1) / (float(sizes.sum()) + haystacks / total), 1.0)
        lost, won = float(sizes[net < 0].sum()), float(sizes[net > 0].sum())
        return Paired(total / size, lost / size, won / size, float(net.sum()) / total, haystacks)

    def z(self, margin: float) -> float:
        """How many standard errors the mean lies above minus the margin, the error as it is if minus the margin is true.

        Source: Tango, Statistics in Medicine 17 (1998): the score test of a difference of paired rates.
        Where nothing differs it still has an error, since a rate of losses of `margin` has one.
        """
        n = self.n
        w = self.lost * (1 + margin) + self.won * (1 - margin) - 2 * margin * n
        # The rate of gains that is likeliest where that of losses exceeds it by the margin.
        gains = (w + math.sqrt(w**2 + 8 * n * self.won * margin * (1 - margin))) / (4 * n)
        error = math.sqrt(max(2 * gains + margin * (1 - margin), 0.0) / n)
        above = self.mean + margin
        return above / error if error > 0 else math.copysign(math.inf, above) if above else 0.0

    def holds(self, margin: float) -> float:
        """The p-value of losing the margin or more: small where the recipe is shown to hold."""
        return float(stats.t.sf(self.z(margin), self._freedom)) if self.haystacks > 1 else 1.0

    def fails(self, margin: float) -> float:
        """The p-value of losing the margin or less: small where the recipe is shown to fail."""
        return float(stats.t.cdf(self.z(margin), self._freedom)) if self.haystacks > 1 else 1.0

    def at_least(self, alpha: float) -> float:
        """The lower end of the difference: the least that is not refused at alpha by `holds`."""
        return -_crossing(lambda margin: self.holds(margin) - alpha)

    def at_most(self, alpha: float) -> float:
        """The upper end of the difference, by `fails`."""
        return -_crossing(lambda margin: alpha - self.fails(margin))

    def to_decide(self, margin: float, alpha: float) -> int | None:
        """How many haystacks like these would decide, in four of five studies; None for more than anybody asks.

        H ((q + q') / z)^2: z grows as the root of the haystacks and must reach the normal's quantile q of
        1 - alpha, and q' of the power beyond it. As z = (d + margin) / (s / sqrt(H)), this is
        (s (q + q') / (d + margin))^2, of the mean difference d and its spread s from haystack to haystack.
        """
        quantiles = float(stats.norm.isf(alpha) + stats.norm.ppf(POWER))
        z = self.z(margin)
        if self.haystacks < 2 or abs(z) * math.sqrt(MOST / self.haystacks) < quantiles:
            return None
        return math.ceil(self.haystacks * (quantiles / z) ** 2)

    @property
    def _freedom(self) -> int:
        return self.haystacks - 1


def _crossing(falling: Callable[[float], float]) -> float:
    """Where a function of the margin, in -1 to 1, falls below 0; an end where it does not."""
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
