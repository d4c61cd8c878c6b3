# pyright: strict
"""Adaptive budgets: as many keys as a share of the attention mass needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import share
from topkit.indexers.combinator import Combinator, every_score
from topkit.indexers.cost import cost_at
from topkit.indexers.exact import exact
from topkit.indexers.scored import best, cut_each, masked
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.select_mass import select_mass


@dataclass(frozen=True)
class top_p(Combinator):
    """Keeps the fewest keys that hold `mass` of the softmax of base's scores, and at most k.

    What base misjudges, the mass misjudges too. Source: arXiv 2502.02770, section 3.
    """

    base: Indexer = exact()  # noqa: RUF009 (a frozen value)
    mass: float = 0.9

    family: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv 2502.02770"
    cost: ClassVar[str] = "as base"
    examples: ClassVar[tuple[str, ...]] = (
        "top_p(mass=0.5)",
        "top_p(quantized(dtype='int4'), mass=0.8)",
        "top_p(shared(exact()), mass=1.0)",
        "top_p(quest(page_size=4))",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "mass")
        every_score(self)

    def traits(self) -> Traits:
        fixed = as_written(self, top_p, "choose") and self.base.traits().fixed
        return replace(super().traits(), fixed=fixed, exhaustive=False, may_come_short=True)

    def costs(self, shape: Shape) -> Cost:
        return self.base.costs(shape).besides(operations=shape.Hq * shape.T)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        if step.at is not None:
            return self._choose_at(index, queries, k, step)
        inner = step.given_to(self.base)
        scores = masked(index.score(queries, inner).float(), step)
        chosen = best(scores, k, step, index.bytes_per_key(inner))
        shares = (step.scaling * step.capped(scores)).softmax(-1)
        weights = shares.gather(-1, chosen.indices.clamp_min(0))
        # A key stays if those before it fall short of the mass; the best one always stays.
        enough = weights.cumsum(-1) - weights >= self.mass
        enough[..., :1] = False
        return replace(chosen, indices=chosen.indices.masked_fill(enough, -1))

    def _choose_at(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        scores = index.visible_scores(queries, step.given_to(self.base))
        how: dict[str, Any] = {"check": step.checks, "backend": step.backend}
        slots = select_mass(step.capped(scores), k, mass=self.mass, scaling=step.scaling, **how)
        return Selection(slots, **cost_at(index, step.given_to(self.base)))

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        return cut_each(self.choose(index, queries, max(ks), step), ks)
