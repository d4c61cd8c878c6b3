"""How often a comparison's verdict is wrong: simulated dumps at their margins, as docs/statistics.md has them.

python tools/verdicts.py [STUDIES]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from topkit.experiments.compare.interval import Mean
from topkit.experiments.compare.verdict import Loss, word_of

MARGINS = {"recall": 0.01, "mass": 0.002}
FEW, MANY = (1, 2, 3, 4), (5, 8, 16, 64)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def some(share: float) -> Draw:
    """Losses of a share of the sequences; the others lose nothing."""
    return lambda g, n: (g.random(n) < share) / share * g.gamma(4, 1 / 4, n)


# Losses of mean 1.
DRAWS: dict[str, Draw] = {
    "even": lambda g, n: g.gamma(25, 1 / 25, n),
    "exponential": lambda g, n: g.exponential(1, n),
    "lognormal": lambda g, n: g.lognormal(-0.5, 1, n),
    "half": some(0.5),
    "a quarter": some(0.25),
    "one in ten": some(0.1),
}


def share(
    word: str, draw: Draw, n: int, times: dict[str, float], own: float, studies: int
) -> float:
    """How often a word comes where mean losses are so many margins, and the baseline's own `own` of them."""
    g, count = np.random.default_rng([n, studies]), 0
    for _ in range(studies):
        losses = {}
        for name, margin in MARGINS.items():
            lost = Mean.of(draw(g, n) * times[name] * margin)
            again = Mean.of(draw(g, n) * own * margin) if own else None
            losses[name] = Loss(lost, margin, again)
        count += word_of(losses) == word
    return count / studies


def main(studies: int) -> None:
    both, one = dict.fromkeys(MARGINS, 1.0), {"recall": 1.0, "mass": 0.0}
    three, little = dict.fromkeys(MARGINS, 3.0), dict.fromkeys(MARGINS, 0.25)
    print("losses | unsafe at 1 sequence | 2 to 64, at most | safe at 5, 8, 16, 64")
    for name, draw in DRAWS.items():
        unsafe = [share("unsafe", draw, n, both, 0, studies) for n in (*FEW, *MANY)]
        safe = [share("safe", draw, n, one, 0, studies) for n in MANY]
        shown = ", ".join(f"{x:.3f}" for x in safe)
        print(f"{name} | {unsafe[0]:.3f} | {max(unsafe[1:]):.3f} | {shown}")
    lowest = max(share("unsafe", draw, 1, little, 0, studies) for draw in DRAWS.values())
    print(f"a quarter of the margins, 1 sequence: unsafe {lowest:.3f}")
    most = max(
        share("unsafe", draw, n, three, 3, studies)
        for draw in DRAWS.values()
        for n in FEW + MANY[:3]
    )
    print(f"three margins beside a rerun's three, 1 to 16 sequences: unsafe at most {most:.3f}")
    for times in (2, 3, 4, 7):
        lost = {"recall": float(times), "mass": 0.0}
        first = next(
            n for n in range(1, 65) if share("unsafe", DRAWS["even"], n, lost, 0, 200) > 0.9
        )
        print(f"{times} margins of recall, even: unsafe from {first} sequences on")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
