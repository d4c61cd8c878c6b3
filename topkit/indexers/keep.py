# pyright: strict
"""Forced keys: attention sinks and the latest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.checks import whole
from topkit.indexers.combinator import Combinator, best_at
from topkit.indexers.forced import say_full
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.force_ends import ends_first, force_ends


@dataclass(frozen=True)
class keep(Combinator):
    """Forces the first `sink` and the newest `window` keys; base fills what they leave of k."""

    sink: int = 0
    window: int = 0

    source: ClassVar[str] = "arXiv 2309.17453"
    cost: ClassVar[str] = "as base"
    examples: ClassVar[tuple[str, ...]] = (
        "keep(sign(), sink=2, window=3)",
        "keep(refine(sign(), factor=2), sink=4)",
        "keep(shared(exact()), window=30)",
        "keep(quest(page_size=4), sink=1, window=2)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "sink", 0)
        whole(self, "window", 0)

    def traits(self) -> Traits:
        own = as_written(self, keep, "choose", "choose_many")
        return replace(super().traits(), fixed=own and self.base.traits().fixed)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        if step.at is not None:
            candidates = self.candidates(index, queries, k, step)
            if candidates is not None:
                return best_at(candidates, k, step)
        return self.choose_many(index, queries, [k], step)[k]

    def candidates(self, index: Index, queries: Tensor, k: int, step: Step) -> Candidates | None:
        base = index.candidates(queries, k, step.given_to(self.base))
        if base is None or step.stop is None:
            return None
        # Where k does not hold all, the first go before the newest.
        sink = min(self.sink, k)
        window = min(self.window, k - sink)
        seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
        scores, slots = force_ends(base.scores, sink, window, slots=base.slots, **seen)
        return replace(base, scores=scores, slots=slots)

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        chosen = index.select_many(queries, ks, step.given_to(self.base))
        length = step.slots(index.length)
        return {k: self._with_ends(chosen[k], length, step) for k in ks}

    def _with_ends(self, chosen: Selection, length: int, step: Step) -> Selection:
        """The selection, the first and the newest keys in the places of its last."""
        count, width = chosen.indices.shape[-2:]
        if width <= self.sink + self.window and width < length:
            say_full(self, self.sink + self.window, width, f"{self.base} chooses nothing")
        seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
        if step.at is None:
            device = chosen.indices.device
            stop = step.stops(length, count, device).clamp_max(length)
            seen |= {"stop": stop, "backend": "torch"}
        slots = ends_first(chosen.indices, width, self.sink, self.window, **seen)
        return replace(chosen, indices=slots)
