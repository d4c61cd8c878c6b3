# pyright: strict
"""Layers that share a choice: some select, and those behind them read the same keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import layers, whole
from topkit.indexers.combinator import Combinator, Wrapped
from topkit.indexers.stateless import SlotCount, Stateless
from topkit.indexers.traits import Traits
from topkit.kernels.compact import compact


@dataclass(frozen=True)
class reuse(Combinator):
    """Selects by base in every `every`-th layer, or in `layers`, and reuses that in the layers behind.

    Those hold no index. Lists per head pair heads of one number; shared(..., per="layer") pairs none.
    Source: TidalDecode, arXiv 2410.05076, whose first layers attend to all; IndexCache, arXiv 2603.12201.
    """

    every: int = 4
    layers: tuple[int, ...] = ()

    # Not that of base: another layer's exact scores are no oracle of this one's.
    family: ClassVar[str] = "layers"
    source: ClassVar[str] = "arXiv 2410.05076"
    cost: ClassVar[str] = "as base, in the layers that select"
    reads: ClassVar[frozenset[str]] = frozenset({"upstream"})
    examples: ClassVar[tuple[str, ...]] = ("reuse(sign())", "reuse(quest(), layers=(0, 5))")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "every", 1)
        layers(self, "layers")
        if "upstream" in self.base.needs:
            raise InputError(f"reuse: {self.base} reuses already")

    def traits(self) -> Traits:
        return replace(super().traits(), exhaustive=False, may_come_short=True)

    def upstream_layer(self, layer: int) -> int | None:
        sources = self.layers or range(0, layer + 1, self.every)
        source = max((n for n in sources if n <= layer), default=layer)
        return None if source == layer else source

    def build(self, keys: Tensor, step: Step) -> Index:
        if self.upstream_layer(step.layer) is None:
            return super().build(keys, step)
        return Wrapped(self, SlotCount(Stateless(), keys.shape[2]))

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        if self.upstream_layer(step.layer) is None:
            return index.select(queries, k, step.given_to(self.base))
        slots = step.upstream.indices
        heads, lists = queries.shape[1], slots.shape[1]
        if heads % lists:
            what = f"layer {step.layer} has {heads} query heads, and the layer that it reuses {lists} lists"
            raise InputError(f"{self}: {what}; have one list a layer, by shared(..., per=layer)")
        return Selection(compact(slots, min(k, index.length)))
