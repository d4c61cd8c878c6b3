"""What is lost of a list, and how far one loss reaches."""

# pyright: strict

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

# Which keys go first: at random, the lowest scores, the highest, the newest, runs of slots together.
MISSES = ("uniform", "boundary", "heavy", "recent", "page")


@dataclass(frozen=True)
class Loss:
    """A share of k keys on average; of losses that reach `further`, each key by its own chance.

    The salts of the noise that decides: for keys, for runs of `page` slots, for the fraction of a key.
    """

    share: float
    chance: float
    miss: str
    further: bool
    per_query: bool
    heads_together: int
    page: int
    seed: int | Tensor
    keys: int
    pages: int
    toss: int

    @property
    def whole(self) -> int:
        return math.floor(self.share)

    @property
    def together(self) -> int:
        """Slots that are lost together, where each is lost by its own chance."""
        return self.page if self.miss == "page" else 1

    def most(self, k: int) -> int:
        """How many of k keys may be lost."""
        return k if self.further else min(self.whole + 1, k)
