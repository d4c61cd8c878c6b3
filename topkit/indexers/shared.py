# pyright: strict
"""One selection for many heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.checks import choice
from topkit.indexers.combinator import Combinator, best_at, every_score
from topkit.indexers.cost import cost_at
from topkit.indexers.scored import ScoredIndex, best, cut_each, masked, pooled
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits, as_written

ATTENTION = "attention"


@dataclass(frozen=True)
class shared(Combinator):
    """Pools base's scores over a KV group's query heads, or a layer's, and gives up each head's own.

    how="attention" sums what the scores stand for, the heads' attention weights: of exact(), per layer, it is
    what a lightning indexer is trained to choose.
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
        "shared(exact(), per='layer', how='attention')",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "per", ("group", "layer"))
        choice(self, "how", ("mean", "sum", "max", ATTENTION))
        every_score(self)

    def traits(self) -> Traits:
        fixed = as_written(self, shared, "choose", "score") and self.base.traits().fixed
        fixed = fixed and self.how != ATTENTION
        return replace(super().traits(), score_all=True, fixed=fixed)

    def costs(self, shape: Shape) -> Cost:
        return replace(self.base.costs(shape), lists=shape.Hk)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        inner = step.given_to(self.base)
        if self._by_codes(index):
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
        if self._by_codes(index):
            return index.visible_scores(queries, inner, self.how)
        return self._pooled(index.visible_scores(queries, inner), step)

    def score(self, index: Index, queries: Tensor, step: Step) -> Tensor:
        scores = index.score(queries, step.given_to(self.base)).float()
        return self._pooled(masked(scores, step) if self.how == ATTENTION else scores, step)

    def _by_codes(self, index: Index) -> TypeGuard[ScoredIndex]:
        """Whether codes are scored and pooled at once."""
        at_once = self.per == "group" and self.how != ATTENTION
        return at_once and isinstance(index, ScoredIndex)

    def _pooled(self, scores: Tensor, step: Step) -> Tensor:
        units = 1 if self.per == "layer" else step.kv_heads
        if self.how != ATTENTION:
            return pooled(scores, units, self.how)
        # Of a query that sees no key there are no weights.
        unseen = pooled(scores, units, "max") == -torch.inf
        weights = step.weights(scores).nan_to_num(0.0)
        return pooled(weights, units, "sum").masked_fill(unseen, -torch.inf)
