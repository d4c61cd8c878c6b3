# pyright: strict
"""Uniformly random keys: the control that must stay near chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.noise import noise
from topkit.indexers.scored import best, cut_each
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.stateless import Stateless
from topkit.indexers.traits import Traits, as_written


@dataclass(frozen=True)
class random(Stateless):
    """Each query head keeps k keys drawn anew at every step, whatever they hold."""

    family: ClassVar[str] = "control"
    source: ClassVar[str] = "control"
    cost: ClassVar[str] = "reads nothing"

    def traits(self) -> Traits:
        return Traits(fixed=as_written(self, random, "choose"))

    def costs(self, shape: Shape) -> Cost:
        return Cost(operations=shape.Hq * shape.T, lists=shape.Hq, kept=shape.kept)

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        draws = noise(step, length, queries).expand(queries.shape[0], -1, -1, -1)
        return replace(best(draws, k, step, 0), keys_scored=0)

    def choose_many(
        self, queries: Tensor, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        return cut_each(self.choose(queries, max(ks), step, length), ks)
