# pyright: strict
"""One selection for many heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.checks import choice
from topkit.indexers.combinator import Combinator, best_at, every_score
from topkit.indexers.cost import cost_at
from topkit.indexers.scored import ScoredIndex, best, cut_each, pooled
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits, as_written


@dataclass(frozen=True)
class shared(Combinator):
    """Pools base's scores over a KV group's query heads, or a layer's, and gives up each head's own.

    Source: selection per group as in arXiv 2502.11089, per layer as in DeepSeek-V3.2-Exp.
    """

    per: str = "group"
    how: str = "mean"

    source: ClassVar[str] = "arXiv 2502.11089"
    cost: ClassVar[str] = "as base"
    examples: ClassVar[tuple[str, ...]] = (
        "shared(exact())",
        "shared(quantized(), per='layer', how='max')",
        "shared(quest(page_size=4), how='sum')",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "per", ("group", "layer"))
        choice(self, "how", ("mean", "sum", "max"))
        every_score(self)

    def traits(self) -> Traits:
        fixed = as_written(self, shared, "choose", "score") and self.base.traits().fixed
        return replace(super().traits(), score_all=True, fixed=fixed)

    def costs(self, shape: Shape) -> Cost:
        return replace(self.base.costs(shape), lists=shape.Hk)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        inner = step.given_to(self.base)
        if self.per == "group" and isinstance(index, ScoredIndex):
            return index.chosen(queries, k, replace(inner, ordered=step.ordered), self.how)
        if step.at is not None:
            return best_at(self.candidates(index, queries, k, step), k, step)
        cost = index.bytes_per_key(inner)
        return best(self.score(index, queries, step), k, step, cost)

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        ordered = replace(step, ordered=step.ordered or len(ks) > 1)
        return cut_each(self.choose(index, queries, max(ks), ordered), ks)

    def candidates(self, index: Index, queries: Tensor, k: int, step: Step) -> Candidates:
        scores = self.visible_scores(index, queries, step)
        return Candidates(scores, **cost_at(index, step.given_to(self.base)))

    def visible_scores(self, index: Index, queries: Tensor, step: Step) -> Tensor:
        inner = step.given_to(self.base)
        if self.per == "group" and isinstance(index, ScoredIndex):
            return index.visible_scores(queries, inner, self.how)
        scores = index.visible_scores(queries, inner)
        return pooled(scores, 1 if self.per == "layer" else step.kv_heads, self.how)

    def score(self, index: Index, queries: Tensor, step: Step) -> Tensor:
        scores = index.score(queries, step.given_to(self.base)).float()
        return pooled(scores, 1 if self.per == "layer" else step.kv_heads, self.how)
