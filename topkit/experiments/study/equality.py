"""Whether cells equal another cell at a margin, both ways, and how many haystacks would say so."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass

from topkit.experiments.study import stats
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.planner import discordance_of, haystacks_needed
from topkit.experiments.study.sentences import BETTER, FLOOR, UNDECIDED, WORSE
from topkit.experiments.study.stats import Interval

EQUAL = "equal"


@dataclass(frozen=True)
class Equality:
    """A cell's paired difference to another, the verdict at a margin, and the haystacks that would give one.

    needed: None where no number would, or the verdict is given.
    """

    gap: Interval
    word: str
    haystacks: int
    needed: int | None = None

    @property
    def plan(self) -> str:
        """What is left to do, in words; "" where nothing is."""
        return plan(self.needed, self.haystacks) if self.word == UNDECIDED else ""


def plan(count: int | None, there: int) -> str:
    """How many haystacks a verdict takes, of which some are there, in words."""
    if count is None:
        return "no number of haystacks that can be run would decide"
    return f"were the two equal, about {count:,} haystacks would show it; {there:,} were run"


def equality(curve: Curve, place: int, base: int, margin: float) -> Equality:
    """Two one-sided tests (Schuirmann 1987): equal where the 95 % interval lies within the margin, both ways.

    Worse and better where it lies beyond; a base that scores no more than the margin tests nothing.
    """
    rates, questions = curve.rates[[base, place]], curve.trials
    gap, count = stats.paired(rates, questions, 0)[1], len(curve.haystacks)
    _, low, high = gap
    if float(rates[0] @ questions / questions.sum()) <= margin:
        return Equality(gap, FLOOR, count)
    if -margin < low and high < margin:
        return Equality(gap, EQUAL, count)
    if high < -margin or low > margin:
        return Equality(gap, WORSE if high < 0 else BETTER, count)
    return Equality(gap, UNDECIDED, count, needed(curve, place, base, margin))


def needed(curve: Curve, place: int, base: int, margin: float) -> int | None:
    """The haystacks that a verdict takes at the discordance seen; None for more than can be run."""
    gaps = curve.rates[place] - curve.rates[base]
    return haystacks_needed(margin, discordance_of(gaps, curve.trials))
