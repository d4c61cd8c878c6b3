"""Needles in a haystack: facts about things, and questions about some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.base import (
    HELD_OUT,
    RULER,
    TRAINED,
    Planted,
    Question,
    Task,
)
from topkit.experiments.tasks.checks import require_facts
from topkit.experiments.tasks.wordings import WORDINGS
from topkit.experiments.tasks.words import NOUNS, things, values

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True)
class Needles(Task):
    """Facts about `questions + distractors` things, with questions about some of them.

    digits: of each value, 0 for made-up names as values; depth: where the needles of the questions
    stand among the sentences, 0 the start and 1 the end (-1: anywhere).
    """

    family: ClassVar[str] = TRAINED
    source: ClassVar[str] = RULER

    distractors: int = 0
    digits: int = 5
    depth: float = -1

    def __post_init__(self) -> None:
        require_facts(self.name, self)

    def wordings(self) -> dict[str, str]:
        return {name: wording.kind for name, wording in WORDINGS.items()}

    def drawn(self, rng: np.random.Generator, count: int) -> list[str]:
        return values(rng, count, self.digits)

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        w = WORDINGS[wording]
        keys = things(rng, self.questions + self.distractors)
        answers = self.drawn(rng, len(keys))
        facts = [w.said(k, v) for k, v in zip(keys, answers, strict=True)]
        questions = tuple(
            w.question(k, v) for k, v in zip(keys[: self.questions], answers, strict=False)
        )
        return self.placed(rng, facts, questions, self.questions)

    def placed(
        self,
        rng: np.random.Generator,
        facts: Sequence[str],
        questions: tuple[Question, ...],
        wanted: int,
    ) -> Planted:
        """Facts in random order and places; the first `wanted` at the task's depth, if it has one."""
        depths = rng.random(len(facts))
        if self.depth >= 0:
            depths[:wanted] = self.depth
        order = np.argsort(depths, kind="stable")
        return Planted(
            tuple(facts[int(i)] for i in order), questions, tuple(depths[order].tolist())
        )


@dataclass(frozen=True)
class Single(Needles):
    """One needle, one question."""

    name: ClassVar[str] = "niah-single"
    asks: ClassVar[str] = "one fact in a haystack"
    questions: int = 1


@dataclass(frozen=True)
class MultiKey(Needles):
    """Many needles of one form; each question asks for one."""

    name: ClassVar[str] = "niah-multikey"
    asks: ClassVar[str] = "one fact among many alike"
    distractors: int = 60


@dataclass(frozen=True)
class Word(Needles):
    """Needles whose values are words; no such value was in the reference model's training."""

    name: ClassVar[str] = "niah-word"
    family: ClassVar[str] = HELD_OUT
    asks: ClassVar[str] = "one fact among many alike, its value a word"
    distractors: int = 12

    def drawn(self, rng: np.random.Generator, count: int) -> list[str]:
        if count > len(NOUNS):
            raise InputError(f"{self.name} has {len(NOUNS)} values; got {count} needles")
        return [NOUNS[i] for i in rng.choice(len(NOUNS), count, replace=False)]


@dataclass(frozen=True)
class MultiValue(Needles):
    """Several values of one thing, distinguished by an ordinal; a question asks for all of them."""

    name: ClassVar[str] = "niah-multivalue"
    asks: ClassVar[str] = "all values of one thing, in order"
    values_each: int = 4

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        if not 2 <= self.values_each <= len(ORDINALS):
            raise InputError(f"values_each must be 2..{len(ORDINALS)}; got {self.values_each}")
        w, n = WORDINGS[wording], self.values_each
        keys = things(rng, self.questions + self.distractors)
        answers = np.reshape(self.drawn(rng, len(keys) * n), (len(keys), n)).tolist()
        facts = [
            w.said(f"{ORDINALS[i]} {key}", v)
            for key, row in zip(keys, answers, strict=True)
            for i, v in enumerate(row)
        ]
        questions = tuple(
            Question(
                f"\nList every {w.attribute} of the {key} in order.",
                ";".join(f" {ORDINALS[i]} {key} {v}" for i, v in enumerate(row)),
                tuple(row),
                facts=tuple(facts[at * n : (at + 1) * n]),
            )
            for at, (key, row) in enumerate(zip(keys[: self.questions], answers, strict=False))
        )
        return self.placed(rng, facts, questions, self.questions * n)


@dataclass(frozen=True)
class MultiQuery(Needles):
    """One question asks for several things at once."""

    name: ClassVar[str] = "niah-multiquery"
    asks: ClassVar[str] = "several facts in one answer"
    distractors: int = 16
    keys_each: int = 4

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        if self.keys_each < 1:
            raise InputError(f"keys_each must be at least 1; got {self.keys_each}")
        w, n = WORDINGS[wording], self.keys_each
        keys = things(rng, self.questions * n + self.distractors)
        pairs = list(zip(keys, self.drawn(rng, len(keys)), strict=True))
        facts = [w.said(k, v) for k, v in pairs]
        questions = tuple(
            Question(
                f"\nList the {w.attribute} of each:"
                + ",".join(f" the {k}" for k, _ in pairs[q * n : (q + 1) * n])
                + ".",
                ";".join(f" the {k} {v}" for k, v in pairs[q * n : (q + 1) * n]),
                tuple(v for _, v in pairs[q * n : (q + 1) * n]),
                facts=tuple(facts[q * n : (q + 1) * n]),
            )
            for q in range(self.questions)
        )
        return self.placed(rng, facts, questions, self.questions * n)
