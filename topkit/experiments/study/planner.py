"""How many haystacks a test of equivalence needs: pure functions of numbers.

Two cells are equal at a margin where the interval of their paired difference lies within it, which is two
one-sided tests (Schuirmann, Journal of Pharmacokinetics 15, 1987). discordance: the mean square of what they
differ by on a haystack; where each has one question, the share that exactly one of the two gets right.
`tools/planner.py` says how often the verdict is wrong, and how often the planned number gives one.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (scipy comes without types.)
from __future__ import annotations

import math

import numpy as np
from scipy import stats as scipy_stats

from topkit.errors import InputError
from topkit.experiments.study.stats import Array, paired_ends

POWER, LEVEL = 0.8, 0.95
# Haystacks that differ, from which on their number is told by the normal distribution.
_MANY = 60
_MOST = 10**9


def haystacks_needed(
    margin: float, discordance: float, power: float = POWER, level: float = LEVEL
) -> int | None:
    """The least haystacks by which equal cells are called equal in a share `power` of studies.

    None where it is more than a thousand million.
    Raises: InputError for a margin, a discordance or a power that is no share.
    """
    for name, value in (("margin", margin), ("power", power)):
        if not 0 < value < 1:
            raise InputError(f"{name} must lie between 0 and 1, as 0.01; got {value:g}")
    if not 0 <= discordance <= 1:
        raise InputError(
            f"discordance must be a share of the haystacks, 0 to 1; got {discordance:g}"
        )
    low, high = 2, 4
    while chance(high, margin, discordance, level) < power:
        low, high = high, high * 2
        if high > _MOST:
            return None
    while high - low > max(1, low // 200):  # more exactly than to 0.5 % nobody plans
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle, margin, discordance, level) >= power else (middle, high)  # fmt: skip
    return high


def chance(haystacks: int, margin: float, discordance: float, level: float = LEVEL) -> float:
    """How likely two equal cells of some discordance are called equal, of so many haystacks.

    Haystacks of one question each, which one cell gains as often as it loses.
    """
    differing = haystacks * discordance
    if differing > _MANY:
        z = scipy_stats.t.ppf((1 + level) / 2, haystacks - 1)
        reach = margin * math.sqrt(haystacks / discordance) - z
        return max(float(2 * scipy_stats.norm.cdf(reach) - 1), 0.0)
    counts = np.arange(int(differing / 2 + 8 * math.sqrt(differing / 2 + 1)) + 2)
    likely = scipy_stats.poisson.pmf(counts, differing / 2)
    losses, gains = counts[:, None] / haystacks, counts / haystacks
    differ = losses + gains  # each by one: the mean square is the mean size
    found = paired_ends(gains - losses, differ, differ, haystacks, level)
    within = (found.low > -margin) & (found.high < margin) & (differ <= 1)
    return float(likely @ within @ likely)


def discordance_of(gaps: Array, questions: Array) -> float:
    """The discordance to plan with, of what two cells differed by on each haystack: one more is counted to it."""
    return float(((gaps**2) @ questions / questions.sum() * len(gaps) + 1) / (len(gaps) + 1))
