"""RULER's aggregation: the words that are most common in a list, and in a coded text."""

# pyright: strict
from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from topkit.experiments.tasks.files.row import Row
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.ruler.forms import COMMON, FREQUENT
from topkit.experiments.tasks.ruler.rows import gold
from topkit.experiments.tasks.words import names

COMMONEST = 10
# Times that a common word and any other stand in the list, and words of the worked example and theirs;
# RULER repeats less below 4K.
LONG, LONG_EXAMPLE = (30, 3), (40, 10, 3)
SHORT, SHORT_EXAMPLE, BELOW = (6, 1), (20, 3, 1), 4096
ALPHA, LETTERS, RANKS, FILLER = 2.0, 6, 3, "..."


@dataclass(frozen=True)
class CommonPrompt:
    """A cwe prompt of any number of different words. seed: of all that is drawn."""

    seed: int
    length: int
    haystack: Haystack
    least: int = COMMONEST + 1

    def row(self, units: int) -> Row:
        """The prompt over so many different words."""
        rng = np.random.default_rng(self.seed)
        short = self.length < BELOW
        count, *times = SHORT_EXAMPLE if short else LONG_EXAMPLE
        drawn = _words(rng, self.haystack, count + units)
        example = self._list(rng, drawn[:count], *times)
        words = drawn[count:]
        head, ask = COMMON.head, COMMON.ask
        shown = gold("cwe", tuple(drawn[:COMMONEST]), COMMON.cue)
        return Row(
            before=f"{head}{example}{ask}{COMMON.cue}{shown}\n{head}",
            context=self._list(rng, words, *(SHORT if short else LONG)),
            after=ask,
            cue=COMMON.cue,
            answer=gold("cwe", tuple(words[:COMMONEST]), COMMON.cue),
            references=tuple(words[:COMMONEST]),
            rule=COMMON.rule,
            tokens=COMMON.tokens,
            kind="cwe",
        )

    def _list(self, rng: np.random.Generator, words: list[str], often: int, seldom: int) -> str:
        """A numbered list in which the first words stand often and the others seldom."""
        said = words[:COMMONEST] * often + words[COMMONEST:] * seldom
        return " ".join(f"{n}. {said[int(i)]}" for n, i in enumerate(rng.permutation(len(said)), 1))


@dataclass(frozen=True)
class FrequentPrompt:
    """A fwe prompt of any number of coded words, Zipf's by rank. seed: of all that is drawn."""

    seed: int
    length: int
    # Fewer, and the word behind the three would be as frequent as the third.
    least: int = 100

    def row(self, units: int) -> Row:
        """The prompt over so many words."""
        rng = np.random.default_rng(self.seed)
        vocabulary = [FILLER, *_coded(rng, max(RANKS + 2, self.length // 50))]
        ranks = np.arange(1, len(vocabulary) + 1)
        counts = (units * ranks**-ALPHA / (math.pi**2 / 6)).astype(int)
        said = [word for word, n in zip(vocabulary, counts, strict=True) for _ in range(int(n))]
        answers = tuple(vocabulary[1 : RANKS + 1])
        return Row(
            before=FREQUENT.head,
            context=" ".join(said[int(i)] for i in rng.permutation(len(said))),
            after=FREQUENT.ask,
            cue=FREQUENT.cue,
            answer=gold("fwe", answers, FREQUENT.cue),
            references=answers,
            rule=FREQUENT.rule,
            tokens=FREQUENT.tokens,
            kind="fwe",
        )


def _coded(rng: np.random.Generator, count: int) -> list[str]:
    """So many different words of six letters."""
    made = dict[str, None]()
    while len(made) < count:
        made["".join(rng.choice(list(string.ascii_lowercase), LETTERS))] = None
    return list(made)


def _words(rng: np.random.Generator, haystack: Haystack, count: int) -> list[str]:
    """So many different words: a text's own, and made-up ones where these are too few."""
    known = _vocabulary(haystack)
    order = [known[int(n)] for n in rng.permutation(len(known))]
    missing = max(0, count - len(order))
    made = dict.fromkeys(name.lower() for name in names(rng, 2 * missing))
    return list(dict.fromkeys([*order, *made]))[:count]


@lru_cache(maxsize=4)
def _vocabulary(haystack: Haystack) -> tuple[str, ...]:
    """The words of a text in small letters, three and longer."""
    words = (w for s in haystack.sentences for w in re.findall(r"(?<!\S)[a-z]{3,}(?!\S)", s))
    return tuple(sorted(set(words)))
