"""A task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.experiments.tasks.base import Planted, Question, Task
from topkit.experiments.tasks.words import names


@dataclass(frozen=True)
class Echo(Task):
    """A name is said, and asked for."""

    name: ClassVar[str] = "echo"
    source: ClassVar[str] = "an example"
    asks: ClassVar[str] = "the name that was said"

    questions: int = 1
    verb: str = "says"

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        said = names(rng, 2 * self.questions)
        pairs = list(zip(said[::2], said[1::2], strict=True))
        facts = tuple(f"{who} {self.verb} {what}." for who, what in pairs)
        asked = tuple(Question(f"\n{who} {self.verb}", f" {what}", (what,)) for who, what in pairs)
        return Planted(facts, asked)
