"""A request for a prompt of a task: number, seed, length, tokenizer, and the text around the needles."""

# pyright: strict
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from topkit.experiments.tasks.encoding import Tokenizer
from topkit.experiments.tasks.haystack import Haystack


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """Prompt number `sample` of a seed and split, of at most `length` tokens."""

    tokenizer: Tokenizer
    length: int
    sample: int
    seed: int = 0
    haystack: Haystack | None = None
    split: str = "evaluation"

    @property
    def text(self) -> Haystack:
        """The text that needles go into; without one, the bundled text."""
        return self.haystack or Haystack.bundled()

    def random(self, *names: str) -> np.random.Generator:
        """The generator of this prompt of a task."""
        return random_for(self.split, *names, self.seed, self.sample)


def random_for(*place: Any) -> np.random.Generator:
    """A random generator seeded by words and numbers: the same on every machine."""
    name = hashlib.sha256(repr(place).encode()).digest()
    return np.random.default_rng(int.from_bytes(name[:16], "little"))
