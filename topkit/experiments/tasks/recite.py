"""Reciting: a long answer in order, so that errors must accumulate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.base import TRAINED, Planted, Question, Task
from topkit.experiments.tasks.words import ADJECTIVES, NOUNS, names

_WORDS = ADJECTIVES + NOUNS


@dataclass(frozen=True)
class Recite(Task):
    """Passages of `words` words in random order, each under a name; a question asks for one, whole."""

    name: ClassVar[str] = "recite"
    family: ClassVar[str] = TRAINED
    source: ClassVar[str] = "topkit"
    asks: ClassVar[str] = "a passage of 128 tokens or more, in order"

    questions: int = 2
    words: int = 140
    distractors: int = 0

    def __post_init__(self) -> None:
        if self.questions < 1 or self.distractors < 0 or not 1 <= self.words <= len(_WORDS):
            raise InputError(
                f"{self.name}: expected questions >= 1, distractors >= 0 and 1..{len(_WORDS)} words; "
                f"got {self}"
            )

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        titles = names(rng, self.questions + self.distractors)
        texts = [
            " ".join(_WORDS[i] for i in rng.choice(len(_WORDS), self.words, replace=False))
            for _ in titles
        ]
        facts = [f"Passage {t} reads: {text}." for t, text in zip(titles, texts, strict=True)]
        order = rng.permutation(len(facts))
        questions = tuple(
            Question(
                f"\nRecite it whole. Passage {t} reads:",
                f" {text}",
                (text,),
                prefix=f" Passage {t} reads:",
                facts=(fact,),
            )
            for t, text, fact in zip(titles[: self.questions], texts, facts, strict=False)
        )
        return Planted(tuple(facts[i] for i in order), questions)
