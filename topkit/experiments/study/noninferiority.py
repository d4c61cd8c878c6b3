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

from scipy.special import ndtri, stdtr, stdtrit

from topkit.experiments.study.stats import Array

POWER = 0.8
MOST = 100_000  # haystacks that anybody would ask


@dataclass(frozen=True)
class Paired:
    """What two recipes differ by: the questions, and of the net number D of each haystack its losses, gains, squares."""

    haystacks: float
    questions: float
    lost: float
    won: float
    squares: float

    @staticmethod
    def of(rates: Array, base: Array, trials: Array) -> Paired:
        """From the rates of a recipe and of what it is compared with."""
        net = (rates - base) * trials
        lost, won = float(-net[net < 0].sum()), float(net[net > 0].sum())
        return Paired(len(trials), float(trials.sum()), lost, won, float((net**2).sum()))

    @property
    def mean(self) -> float:
        """Won minus lost, a question."""
        return (self.won - self.lost) / self.questions

    @property
    def size(self) -> float:
        """How many questions are lost or won together: sum(D^2) / sum(|D|), at least 1.

        With the weight of one question that each haystack counting as one has, as in `stats.design_effect`: where
        nothing differs, whatever differs next may be a whole haystack.
        """
        own = self.lost + self.won + self.haystacks / self.questions
        return max((self.squares + 1) / own, 1.0)

    def z(self, margin: float) -> float:
        """How many standard errors the mean lies above minus the margin, the error as it is if that is the truth.

        Source: Tango, Statistics in Medicine 17 (1998), the score test of a difference of paired rates, of as many
        questions as would say as much. Where nothing differs there is still an error: losses at the rate of the
        margin have one.
        """
        above, error = self.mean + margin, self._error(margin)
        return above / error if error > 0 else math.copysign(math.inf, above) if above else 0.0

    def holds(self, margin: float) -> float:
        """The p-value of losing the margin or more: small where the recipe is shown to hold."""
        return float(stdtr(self.haystacks - 1, -self.z(margin))) if self.haystacks > 1 else 1.0

    def fails(self, margin: float) -> float:
        """The p-value of losing the margin or less: small where the recipe is shown to fail."""
        return float(stdtr(self.haystacks - 1, self.z(margin))) if self.haystacks > 1 else 1.0

    def at_least(self, alpha: float) -> float:
        """The lower end of the difference: the least that `holds` does not refuse at alpha."""
        return -self._where(_quantile(alpha, self.haystacks - 1))

    def at_most(self, alpha: float) -> float:
        """The upper end of the difference, by `fails`."""
        return -self._where(-_quantile(alpha, self.haystacks - 1))

    def to_decide(self, margin: float, alpha: float) -> int | None:
        """How many haystacks like these would decide, in four of five studies; None for more than anybody asks.

        The least H at which |d + margin| >= (q s0 + q' s) / sqrt(H): d is the mean difference, s its spread from
        haystack to haystack, s0 that spread if minus the margin is true, q Student's quantile of 1 - alpha and q'
        the normal's of the power.
        """

        def short(haystacks: float) -> float:
            more = self._times(haystacks / self.haystacks)
            needed = _quantile(alpha, haystacks - 1) * more._error(margin)
            return needed + float(ndtri(POWER)) * more._own_error - abs(self.mean + margin)

        if self.haystacks < 2 or short(MOST) > 0:
            return None
        return math.ceil(_root(short, self.haystacks, MOST))

    def _times(self, factor: float) -> Paired:
        """As many times these haystacks."""
        numbers = (self.haystacks, self.questions, self.lost, self.won, self.squares)
        return Paired(*(factor * x for x in numbers))

    def _error(self, margin: float) -> float:
        """Of the mean, were it minus the margin: from the rate of gains that is likeliest then."""
        n = self.questions / self.size
        lost, won = self.lost / self.size, self.won / self.size
        w = lost * (1 + margin) + won * (1 - margin) - 2 * margin * n
        gains = (w + math.sqrt(max(w**2 + 8 * n * won * margin * (1 - margin), 0.0))) / (4 * n)
        return math.sqrt(max(2 * gains + margin * (1 - margin), 0.0) / n)

    @property
    def _own_error(self) -> float:
        """Of the mean, were it what it is."""
        n = self.questions / self.size
        return math.sqrt(max((self.lost + self.won) / self.questions - self.mean**2, 0.0) / n)

    def _where(self, errors: float) -> float:
        """The margin at which minus the margin lies so many errors below the mean."""
        return _root(lambda margin: errors - self.z(margin), -1.0, 1.0)


def _quantile(alpha: float, freedom: float) -> float:
    """Student's, of 1 - alpha; without freedom nothing is excluded."""
    return float(stdtrit(freedom, 1 - alpha)) if freedom > 0 else math.inf


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function falls below 0; an end where it does not."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
