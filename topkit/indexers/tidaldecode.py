# pyright: strict
"""TidalDecode: two layers select for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from topkit.errors import InputError
from topkit.indexers.base import Indexer
from topkit.indexers.checks import layers
from topkit.indexers.exact import exact
from topkit.indexers.layers import Layered


@dataclass(frozen=True)
class tidaldecode(Layered):
    """Selects by all scores in two layers, and reuses each head's list in those behind.

    Departs from the paper, whose layers that select, and those before them, attend to all: on the budget they
    keep their own best keys, and attach(layers=range(2, n)) leaves the first two dense. The second layer that
    selects is the model's (13 for Llama-3-8B, 7 for Llama-2-7B).
    Source: arXiv 2410.05076, section 3.
    """

    base: Indexer = exact()  # noqa: RUF009 (a frozen value)
    layers: tuple[int, ...] = (2, 13)

    source: ClassVar[str] = "arXiv 2410.05076"
    cost: ClassVar[str] = "reads every key, in the layers that select"
    examples: ClassVar[tuple[str, ...]] = ("tidaldecode()", "tidaldecode(layers=(0, 2))")

    def __post_init__(self) -> None:
        layers(self, "layers")
        if not self.layers:
            raise InputError("tidaldecode: layers must name a layer that selects; got ()")
        super().__post_init__()

    def selects(self, layer: int) -> bool:
        return layer in self.layers
