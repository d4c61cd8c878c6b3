"""RULER's needles in a haystack, over a text of one's own."""

# pyright: strict
from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import islice

import numpy as np

from topkit.experiments.tasks.files.row import Row
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.ruler.forms import FACT, NEEDLES, form_of
from topkit.experiments.tasks.ruler.rows import gold
from topkit.experiments.tasks.words import things

# A line of noise, and where needles may stand in running text: RULER's.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = np.round(np.linspace(0, 100, 40)) / 100


@dataclass(frozen=True)
class NeedlePrompt:
    """A niah prompt of any number of units: words of running text, lines of noise, other needles.

    seed: of all that is drawn, the same for every number of units.
    """

    task: str
    seed: int
    haystack: Haystack

    @property
    def least(self) -> int:
        """The fewest units: needles have places of their own."""
        needle = NEEDLES[self.task]
        return needle.keys * needle.values + 1

    def row(self, units: int) -> Row:
        """The prompt over so many units."""
        needle, rng = NEEDLES[self.task], np.random.default_rng(self.seed)
        others = units if needle.haystack == "needles" else 0
        keys = drawn(rng, needle.key_kind, needle.keys + others)
        values = drawn(rng, needle.value_kind, needle.keys * needle.values + others)
        each = [values[n * needle.values : (n + 1) * needle.values] for n in range(needle.keys)]
        pairs = [(key, v) for key, vs in zip(keys, each, strict=False) for v in vs]
        facts = [self._fact(*pairs[int(n)]) for n in rng.permutation(len(pairs))]
        asked = [int(n) for n in rng.choice(needle.keys, needle.queries, replace=False)]
        if needle.haystack == "text":
            context = _in_text(facts, self.haystack, units, rng)
        else:
            rest = zip(keys[needle.keys :], values[len(pairs) :], strict=False)
            lines = [self._fact(*pair) for pair in rest] if others else [NOISE] * units
            places = np.sort(rng.choice(units, len(facts), replace=False))[::-1]
            for place, fact in zip(places, facts, strict=True):
                lines.insert(int(place), fact)
            context = "\n".join(lines)
        return self._row(context, [keys[n] for n in asked], [v for n in asked for v in each[n]])

    def _fact(self, key: str, value: str) -> str:
        return FACT.format(kind=NEEDLES[self.task].value_kind, key=key, value=value)

    def _row(self, context: str, keys: list[str], answers: list[str]) -> Row:
        form, kind = form_of(self.task), NEEDLES[self.task].value_kind
        kind = kind[:-1] if len(answers) == 1 else kind
        query = f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]
        cue = form.cue.format(kind=kind, query=query)
        return Row(
            before=form.head.format(kind=kind),
            context=context,
            after=form.ask.format(kind=kind, query=query),
            cue=cue,
            answer=gold(self.task, tuple(answers), cue),
            references=tuple(answers),
            rule=form.rule,
            tokens=form.tokens,
            kind=self.task,
            facts=tuple(answers),
        )


def drawn(rng: np.random.Generator, kind: str, count: int) -> list[str]:
    """So many different words (two, joined), numbers of seven digits, or uuids."""
    if kind == "words":
        return [name.replace(" ", "-") for name in things(rng, count)]
    if kind == "numbers":
        return [str(10**6 + int(n)) for n in rng.choice(9 * 10**6, count, replace=False)]
    return [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(count)]


def _in_text(facts: list[str], haystack: Haystack, words: int, rng: np.random.Generator) -> str:
    """Facts between the sentences of so many words of a text, each at another of RULER's depths."""
    depths = np.sort(rng.choice(DEPTHS, len(facts), replace=False))
    at, count, sentences = int(rng.integers(len(haystack.sentences))), words, list[str]()
    while count > 0:
        some = list(islice(haystack.sentences[at % len(haystack.sentences)].split(" "), count))
        sentences.append(" ".join(some))
        at, count = at + 1, count - len(some)
    parts, last = list[str](), 0
    for depth, fact in zip(depths, facts, strict=True):
        place = int(len(sentences) * depth)
        parts += [*sentences[last:place], fact]
        last = place
    return " ".join([*parts, *sentences[last:]])
