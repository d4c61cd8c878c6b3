# pyright: strict
"""Loki: the leading principal components of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.channels import Calibrated
from topkit.indexers.key_moments import principal_components
from topkit.indexers.stated_cost import Shape


@dataclass(frozen=True)
class loki(Calibrated):
    """Scores over the directions in which keys differ most, and gives up the others.

    Keys and queries are turned onto the leading principal components of each head's keys, which are those
    at build, or of a file of calibration. Keys are centred to find them, and not when they are turned.
    Source: arXiv 2406.02542, section 4.
    """

    source: ClassVar[str] = "arXiv 2406.02542"
    cost: ClassVar[str] = "reads 1/4 of the numbers of each key"
    table: ClassVar[str] = "components"
    examples: ClassVar[tuple[str, ...]] = ("loki()", "loki(channels=0.5)", "loki(channels=3)")

    def table_bytes(self, shape: Shape) -> float:
        return 4 * shape.Hk * shape.D * self.count(shape.D)

    def learn(self, keys: Tensor, step: Step) -> Tensor:
        return principal_components(keys, step)

    def leading(self, table: Tensor, count: int) -> Tensor:
        return table[..., :count]

    def through(self, vectors: Tensor, table: Tensor) -> Tensor:
        return (vectors.float() @ table).to(vectors.dtype)
