"""RULER's variable tracking: one chain of five names among lines of noise, and one worked example."""

# pyright: strict
from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from topkit.experiments.tasks.files.row import Row
from topkit.experiments.tasks.ruler.forms import TRACKING
from topkit.experiments.tasks.ruler.needles import NOISE
from topkit.experiments.tasks.ruler.rows import gold

HOPS, LETTERS = 4, 5
# Of the worked example: letters of a name, and lines of noise, of which RULER fits in what 500 tokens hold.
SHORT, LINES = 3, 12


@dataclass(frozen=True)
class TrackingPrompt:
    """A vt prompt of any number of lines of noise. seed: of all that is drawn."""

    seed: int
    lines_of_example: int = LINES
    least: int = HOPS + 1

    def row(self, units: int) -> Row:
        """The prompt over so many lines."""
        rng = np.random.default_rng(self.seed)
        number, *others = (str(10**4 + int(n)) for n in rng.choice(9 * 10**4, 2, replace=False))
        names = _names(rng, LETTERS)
        shown = _names(rng, SHORT)
        example = self._asked(rng, shown, others[0], self.lines_of_example)
        context = _lines(rng, names, number, units)
        cue = TRACKING.cue.format(count=HOPS + 1, query=number)
        return Row(
            before=f"{example} {' '.join(shown)}\n\n{TRACKING.head}",
            context=context,
            after=TRACKING.ask.format(query=number),
            cue=cue,
            answer=gold("vt", tuple(names), cue),
            references=tuple(names),
            rule=TRACKING.rule,
            tokens=TRACKING.tokens,
            kind="vt",
        )

    def _asked(self, rng: np.random.Generator, names: list[str], number: str, lines: int) -> str:
        ask = TRACKING.ask + TRACKING.cue
        body = _lines(rng, names, number, lines)
        return TRACKING.head + body + ask.format(count=HOPS + 1, query=number)


def _lines(rng: np.random.Generator, names: list[str], number: str, count: int) -> str:
    """Lines of noise, and in their order those that hand a number on from name to name."""
    chain = [f"VAR {names[0]} = {number}"]
    chain += [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
    lines = [NOISE] * count
    places = np.sort(rng.choice(count, len(chain), replace=False))
    for before, (place, line) in enumerate(zip(places, chain, strict=True)):
        lines.insert(int(place) + before, line)
    return "\n".join(lines)


def _names(rng: np.random.Generator, letters: int) -> list[str]:
    """Five different names of so many capital letters."""
    made = dict[str, None]()
    while len(made) <= HOPS:
        made["".join(rng.choice(list(string.ascii_uppercase), letters))] = None
    return list(made)
