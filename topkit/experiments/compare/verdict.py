"""Safe, unsafe or undecided: the mean losses of sequences beside what may be lost."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from topkit.experiments.compare.interval import ERROR, FEWEST, Mean

SAFE, UNSAFE, UNDECIDED = "safe", "unsafe", "undecided"
# Beyond so many sequences nobody is told to go on.
MOST = 1_000_000


@dataclass(frozen=True)
class Loss:
    """A mean loss of the candidate, what it may be, and what the baseline loses by itself, if that is known."""

    mean: Mean
    margin: float
    rerun: Mean | None = None

    def over(self, sequences: int) -> Loss:
        """The same of another number of sequences like these."""
        rerun = None if self.rerun is None else self.rerun.over(sequences)
        return Loss(self.mean.over(sequences), self.margin, rerun)

    def itself(self, tail: float) -> float:
        """What the baseline loses by itself at most, from run to run."""
        return 0.0 if self.rerun is None else self.rerun.high(tail)

    def unsafe(self, tail: float) -> bool:
        """Whether more is lost than the margin, beyond what the baseline loses by itself."""
        strict = self.rerun is not None  # few sequences say little of what it does by itself
        return self.mean.exceeds(self.margin + self.itself(tail), tail, strict)

    def safe(self, tail: float) -> bool:
        """Whether less is lost than the margin, whatever the baseline loses by itself."""
        return self.mean.sequences >= FEWEST and self.mean.high(tail) < self.margin


@dataclass(frozen=True)
class Verdict:
    """The word; where it is undecided, the number of sequences like these that would decide, None for no number."""

    word: str
    sequences: int | None = None


def tail_of(losses: Mapping[str, Loss]) -> float:
    """How often one end may be wrong, so that any of them is in at most ERROR of cases."""
    return ERROR / sum(1 if loss.rerun is None else 2 for loss in losses.values())


def verdict(losses: Mapping[str, Loss]) -> Verdict:
    """Unsafe by any loss, safe by all of them."""
    word = word_of(losses)
    return Verdict(word, _enough(losses) if word == UNDECIDED else None)


def word_of(losses: Mapping[str, Loss]) -> str:
    """The word alone."""
    tail = tail_of(losses)
    if any(loss.unsafe(tail) for loss in losses.values()):
        return UNSAFE
    return SAFE if all(loss.safe(tail) for loss in losses.values()) else UNDECIDED


def _enough(losses: Mapping[str, Loss]) -> int | None:
    """The least number of sequences that would decide, if they went on like these."""

    def decided(n: int) -> bool:
        return word_of({name: loss.over(n) for name, loss in losses.items()}) != UNDECIDED

    low = max(loss.mean.sequences for loss in losses.values())
    high = 2 * low
    while not decided(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
