"""Key-value recall: a dense run of pairs, some of which are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.base import (
    Planted,
    Question,
    Task,
    require_depth,
    require_digits,
)
from topkit.experiments.tasks.words import names, values


@dataclass(frozen=True)
class KeyValueRecall(Task):
    """Pairs of a made-up name and a number, one after the other, in one block of the haystack."""

    name: ClassVar[str] = "kv-recall"
    source: ClassVar[str] = "HELMET's JSON KV, arXiv 2410.02694"
    asks: ClassVar[str] = "the number of a made-up name, in a dense list"

    distractors: int = 92
    digits: int = 5
    depth: float = -1

    def __post_init__(self) -> None:
        if self.questions < 1 or self.distractors < 0:
            raise InputError(f"{self.name}: expected questions >= 1, distractors >= 0; got {self}")
        require_digits(self.name, self.digits)
        require_depth(self.name, self.depth)

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        count = self.questions + self.distractors
        drawn = names(rng, 2 * count)
        keys, told = drawn[:count], drawn[count:]
        if self.digits:
            told = values(rng, count, self.digits)
        order = rng.permutation(len(keys))
        block = " ".join(f"{keys[i]}={told[i]};" for i in order)
        asked = tuple(
            Question(f"\nLook up {key}. {key}=", value, (value,))
            for key, value in zip(keys[: self.questions], told, strict=False)
        )
        return Planted((block,), asked, () if self.depth < 0 else (self.depth,))
