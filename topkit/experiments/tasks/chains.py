"""Variable tracking: names that hold numbers, or hold what another name holds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.base import RULER, TRAINED, Planted, Question, Task
from topkit.experiments.tasks.checks import require_digits
from topkit.experiments.tasks.words import names, values


@dataclass(frozen=True)
class VariableTracking(Task):
    """Chains of names; the end of a chain holds the number of its start.

    hops: 1 asks for a name that holds its number directly, 2 for one that holds what another
    holds, and so on. The canonical answer spells the chain out, link by link; the score looks for
    the number alone.
    """

    name: ClassVar[str] = "variable-tracking"
    family: ClassVar[str] = TRAINED
    source: ClassVar[str] = RULER
    asks: ClassVar[str] = "the number at the end of a chain of names"

    hops: int = 2
    distractors: int = 12
    digits: int = 5

    def __post_init__(self) -> None:
        if min(self.questions, self.hops) < 1 or self.distractors < 0:
            raise InputError(
                f"{self.name}: expected questions, hops >= 1, distractors >= 0; got {self}"
            )
        require_digits(self.name, self.digits)

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        chains = self.questions + self.distractors
        drawn = names(rng, chains * (self.hops + 1))
        links = np.reshape(drawn[chains:], (chains, self.hops)).tolist()
        answers = values(rng, chains, self.digits) if self.digits else drawn[:chains]
        facts, depths, questions = [], [], []
        for number, (chain, value) in enumerate(zip(links, answers, strict=True)):
            facts += [f"{chain[0]} holds {value}."]
            facts += [f"{b} holds what {a} holds." for a, b in itertools.pairwise(chain)]
            depths += sorted(rng.random(self.hops).tolist())
            if number < self.questions:
                answer = "".join(f" what {link} holds; {link} holds" for link in chain[-2::-1])
                questions.append(
                    Question(
                        f"\nWhich number does {chain[-1]} hold? {chain[-1]} holds",
                        f"{answer} {value}",
                        (value,),
                        prefix=f" {chain[-1]} holds",
                        facts=(f"{chain[0]} holds {value}.",),
                    )
                )
        order = np.argsort(depths, kind="stable")
        return Planted(
            tuple(facts[i] for i in order), tuple(questions), tuple(depths[i] for i in order)
        )
