# pyright: strict
"""The family "some layers select, and those behind them read the same keys"."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.combinator import Combinator, Wrapped
from topkit.indexers.stateless import SlotCount, Stateless
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.compact import compact


@dataclass(frozen=True)
class Layered(Combinator):
    """A recipe that writes which layers select by base; those behind them hold no index."""

    # Not that of base: another layer's exact scores are no oracle of this one's.
    family: ClassVar[str] = "layers"
    cost: ClassVar[str] = "as base, in the layers that select"
    reads: ClassVar[frozenset[str]] = frozenset({"upstream"})

    def selects(self, layer: int) -> bool:
        """Whether a layer selects by base."""
        raise NotImplementedError(f"{type(self).__name__}.selects")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "upstream" in self.base.needs:
            raise InputError(f"{type(self).__name__}: {self.base} reuses already")

    def traits(self) -> Traits:
        own = as_written(self, Layered, "choose", "choose_many", "build")
        fixed = own and self.base.traits().fixed
        return replace(super().traits(), exhaustive=False, may_come_short=True, fixed=fixed)

    def upstream_layer(self, layer: int) -> int | None:
        # Layers before the first that selects have nothing to read, and select too.
        sources = (n for n in range(layer, -1, -1) if self.selects(n))
        source = next(sources, layer)
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
        return Selection(compact(slots, min(k, step.slots(index.length))))
