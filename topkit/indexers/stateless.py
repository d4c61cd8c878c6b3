# pyright: strict
"""The family "hold nothing": keys are chosen from the cache, or from positions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step


class Stateless(Indexer):
    """A recipe that writes how it chooses among the slots so far, and keeps no index of them."""

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        """At most k of the first `length` slots for each of queries [B, Hq, Tq, D]."""
        raise NotImplementedError(f"{type(self).__name__}.choose")

    def choose_many(
        self, queries: Tensor, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        """`choose` at several budgets; recipes that can share work between them write it."""
        return {k: self.choose(queries, k, step, length) for k in ks}

    def build(self, keys: Tensor, step: Step) -> Index:
        return SlotCount(self, keys.shape[2])


@dataclass
class SlotCount(Index):
    """How many slots there are."""

    recipe: Stateless
    slots: int

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        return 0

    def append(self, keys: Tensor, step: Step) -> None:
        if step.at is None:
            self.slots += keys.shape[2]

    def truncate(self, length: int, step: Step) -> None:
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        pass

    def room(self) -> Mapping[str, Tensor]:
        return {}

    def reveal(self, length: int) -> None:
        self.slots = length

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.recipe.choose(queries, k, step, step.slots(self.slots))

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        if step.at is not None:
            return {k: self.select(queries, k, step) for k in ks}
        return self.recipe.choose_many(queries, ks, step, step.slots(self.slots))
