"""How many haystacks a margin takes, and whether that holds: python tools/planner.py [STUDIES].

Simulated studies of two cells: haystacks of one question (several that are decided together are one), and of four
that are independent. Of each discordance and true difference: how often the 95 % interval of the paired difference
holds the truth, how often the two are called equal where they differ by the whole margin (false), and where they are equal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topkit.cli.exits import exit_code
from topkit.cli.listing import markdown
from topkit.errors import InputError
from topkit.experiments.study.planner import haystacks_needed
from topkit.experiments.study.stats import Array, paired

STUDIES = 2000
MARGIN = 0.01
DISCORDANCES = (0.01, 0.02, 0.05, 0.1, 0.3)
BAND = (0.93, 0.97)
# Where fewer haystacks are expected to differ, the lattice of so few decides.
DECIDING = 15
KINDS = {"one question": 1, "four, independent": 4}


@dataclass(frozen=True)
class Setting:
    """Cells that differ so often (by question) and so much on average."""

    kind: str
    discordance: float
    difference: float
    haystacks: int

    @property
    def deciding(self) -> bool:
        """Whether enough haystacks differ, and both ways, for a share of studies to be near its level."""
        lesser = self.haystacks * (self.discordance - abs(self.difference)) / 2
        return self.haystacks * self.discordance >= DECIDING and lesser >= 2


def gaps(setting: Setting, rng: np.random.Generator) -> Array:
    """What the second cell scores more than the first on each haystack."""
    questions = KINDS[setting.kind]
    lost, gained = (
        (setting.discordance - setting.difference) / 2,
        (setting.discordance + setting.difference) / 2,
    )
    shares = [lost, gained, 1 - lost - gained]
    if questions == 1:
        return rng.choice([-1.0, 1.0, 0.0], setting.haystacks, p=shares)
    drawn = rng.multinomial(questions, shares, size=setting.haystacks)
    return (drawn[:, 1] - drawn[:, 0]) / questions


def simulated(
    setting: Setting, studies: int, seed: int = 0, margin: float = MARGIN
) -> tuple[float, float]:
    """The share of studies whose interval holds the truth, and of those that call the two equal."""
    rng = np.random.default_rng(seed)
    rates = np.stack([np.zeros(setting.haystacks), *(gaps(setting, rng) for _ in range(studies))])
    found = paired(rates, np.ones(setting.haystacks), 0)
    low, high = found.low[1:], found.high[1:]
    held = (low <= setting.difference) & (setting.difference <= high)
    return float(held.mean()), float(((-margin < low) & (high < margin)).mean())


def settings(margin: float = MARGIN) -> list[Setting]:
    made: list[Setting] = []
    for kind in KINDS:
        for discordance in DISCORDANCES:
            planned = haystacks_needed(margin, discordance) or 0
            counts = sorted({64, 256, 1000, min(planned, 6000)})
            made += [
                Setting(kind, discordance, difference, n)
                for n in counts
                for difference in (0.0, -margin / 2, -margin)
            ]
    return made


def main(words: Sequence[str]) -> None:
    if len(words) > 1 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise InputError("give the number of studies a setting, or nothing: python tools/planner.py 2000")  # fmt: skip
    studies = int(words[0]) if words else STUDIES
    print(markdown([_planned(d) for d in (0.0, 0.002, *DISCORDANCES)]))
    rows, decided, false = list[dict[str, str]](), list[float](), list[float]()
    for setting in settings():
        held, same = simulated(setting, studies)
        decided += [held] if setting.deciding else []
        false += [same] if setting.difference == -MARGIN else []
        rows.append(
            {
                "haystacks": f"{setting.haystacks:,}",
                "of": setting.kind,
                "discordance": f"{setting.discordance:g}",
                "difference": f"{setting.difference:g}",
                "holds the truth": f"{held:.3f}",
                "called equal": f"{same:.3f}",
            }
        )
    print(f"\n{markdown(rows)}\n")
    print(
        f"{studies} studies a row. Intervals that {DECIDING} haystacks or more decide, both ways, hold the truth in "
        f"{min(decided):.3f} to {max(decided):.3f}; called equal at a true difference of the margin: at most "
        f"{max(false):.3f}."
    )


def _planned(discordance: float) -> dict[str, str]:
    return {
        "discordance": f"{discordance:g}",
        **{
            f"margin {margin:g}": f"{haystacks_needed(margin, discordance) or 0:,}"
            for margin in (0.01, 0.02, 0.05)
        },
    }


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
