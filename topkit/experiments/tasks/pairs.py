"""Key-value recall: a dense run of pairs, and questions about some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.experiments.tasks.base import (
    TRAINED,
    Planted,
    Question,
    Task,
)
from topkit.experiments.tasks.checks import require_facts
from topkit.experiments.tasks.words import names, values


@dataclass(frozen=True)
class KeyValueRecall(Task):
    """Pairs of a made-up name and a number, one after the other, in one block of the haystack."""

    name: ClassVar[str] = "kv-recall"
    family: ClassVar[str] = TRAINED
    source: ClassVar[str] = "HELMET's JSON KV, arXiv 2410.02694"
    asks: ClassVar[str] = "the number of a made-up name, in a dense list"

    distractors: int = 92
    digits: int = 5
    depth: float = -1

    def __post_init__(self) -> None:
        require_facts(self.name, self)

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        count = self.questions + self.distractors
        drawn = names(rng, 2 * count)
        keys, answers = drawn[:count], drawn[count:]
        if self.digits:
            answers = values(rng, count, self.digits)
        order = rng.permutation(len(keys))
        block = " ".join(f"{keys[i]}={answers[i]};" for i in order)
        questions = tuple(
            Question(
                f"\nLook up {key}. {key}=",
                value,
                (value,),
                prefix=f" {key}=",
                facts=(f"{key}={value};",),
            )
            for key, value in zip(keys[: self.questions], answers, strict=False)
        )
        return Planted((block,), questions, () if self.depth < 0 else (self.depth,))
