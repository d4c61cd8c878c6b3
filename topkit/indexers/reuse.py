# pyright: strict
"""Layers that share a choice: every few layers one selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from topkit.indexers.checks import layers, whole
from topkit.indexers.layers import Layered


@dataclass(frozen=True)
class reuse(Layered):
    """Selects by base in every `every`-th layer, or in `layers`, and reuses that in the layers behind.

    Those hold no index. Lists per head pair heads of one number; shared(..., per="layer") pairs none.
    Source: TidalDecode, arXiv 2410.05076, whose first layers attend to all; IndexCache, arXiv 2603.12201.
    """

    every: int = 4
    layers: tuple[int, ...] = ()

    source: ClassVar[str] = "arXiv 2410.05076"
    examples: ClassVar[tuple[str, ...]] = ("reuse(sign())", "reuse(quest(), layers=(0, 5))")

    def __post_init__(self) -> None:
        whole(self, "every", 1)
        layers(self, "layers")
        super().__post_init__()

    def selects(self, layer: int) -> bool:
        return layer in self.layers if self.layers else layer % self.every == 0
