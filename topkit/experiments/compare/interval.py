"""The ends of a mean loss over sequences, and how many sequences like these bring them to one side of a limit.

A loss is never below 0. docs/statistics.md says what is assumed, and how often it errs by simulation.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
# (scipy comes without types.)
from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

# How often a verdict may be wrong.
ERROR = 0.05
# Fewer clean sequences leave it open whether half of all are: 2 ** -5 is below ERROR, 2 ** -4 above.
FEWEST = 5
# What part of a bet stands on the losses, and its part of the stake. Few sequences are best told by a bet that
# stands on them whole; it is lost at the first that loses nothing, for which the others are there.
WHOLE = ((1.0, 1.0),)
BETS = ((1.0, 0.75), (0.5, 0.1), (0.25, 0.1), (0.1, 0.05))
# How many times itself the stake must become for each sequence, until this is enough by what may be wrong.
TIMES = 10
_HALVINGS = 60


@dataclass(frozen=True)
class Mean:
    """The mean of one loss a sequence, each counting once.

    sequences: how many they stand for, were they to go on like these.
    """

    losses: tuple[float, ...]
    sequences: int

    @classmethod
    def of(cls, losses: Array) -> Mean:
        """Of losses [n]."""
        return cls(tuple(map(float, losses)), len(losses))

    @property
    def value(self) -> float:
        return sum(self.losses) / len(self.losses)

    def over(self, sequences: int) -> Mean:
        """The same of another number of sequences like these."""
        return Mean(self.losses, sequences)

    def exceeds(self, limit: float, tail: float, strict: bool = False) -> bool:
        """Whether the mean is above a limit, wrong with a probability of `tail`; of few sequences see TIMES.

        Whatever the losses are like: where each is expected to be at most the limit, a stake of which a share c is
        multiplied by loss / limit at each sequence does not grow on average, and reaches 1 / tail times itself in a
        share of `tail` of cases at most (Markov). strict: of few sequences too. Source: Waudby-Smith and Ramdas, JRSS B 86, 2024, on bets.
        """
        ratios = np.array(self.losses) / limit
        times = self.sequences / len(ratios)
        bets = BETS if self.sequences >= FEWEST else WHOLE
        with np.errstate(divide="ignore"):
            grown = [times * np.log(1 - c + c * ratios).sum() + log(own) for c, own in bets]
        enough = 1 / tail if strict else min(TIMES * self.sequences, 1 / tail)
        return bool(np.logaddexp.reduce(grown) >= log(enough))

    def low(self, tail: float) -> float:
        """What the mean is at least, wrong with a probability of `tail`."""
        low, high = 0.0, max(self.losses)
        if high > 0:
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if self.exceeds(middle, tail) else (low, middle)
        return low

    def high(self, tail: float) -> float:
        """What the mean is at most, wrong with a probability of `tail`, were losses no more uneven than exponential.

        The greater of the exact one of exponential losses, whose spread is their mean, and, from FEWEST sequences
        on, Student's by the spread that they show.
        """
        n, mean = self.sequences, self.value
        high = 2 * n * mean / float(stats.chi2.ppf(tail, 2 * n))
        if n >= FEWEST:
            # One sequence, of which more are imagined, shows no spread.
            single = len(self.losses) == 1
            spread = mean if single else float(np.std(self.losses, ddof=1))
            high = max(high, mean + float(stats.t.ppf(1 - tail, n - 1)) * spread / sqrt(n))
        return min(high, 1.0)


def most_of(count: int, sequences: int) -> float:
    """The share of all sequences of which `count` of so many are examples, at most, wrong in ERROR of cases.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if count == sequences:
        return 1.0
    return float(stats.beta.ppf(1 - ERROR, count + 1, sequences - count))
