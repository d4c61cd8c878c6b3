"""One selection for many heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import choice
from topkit.indexers.combinator import Combinator, every_score
from topkit.indexers.scored import best


@dataclass(frozen=True)
class shared(Combinator):
    """Pools base's scores over a KV group's query heads, or a layer's, and gives up each head's own.

    Source: selection per group as in arXiv 2502.11089, per layer as in DeepSeek-V3.2-Exp.
    """

    per: str = "group"
    how: str = "mean"

    source: ClassVar[str] = "arXiv 2502.11089"
    cost: ClassVar[str] = "as base"
    score_all: ClassVar[bool] = True
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

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        cost = index.bytes_per_key(step.given_to(self.base))
        return best(self.score(index, queries, step), k, step, cost)

    def score(self, index: Index, queries: Tensor, step: Step) -> Tensor:
        scores = index.score(queries, step.given_to(self.base)).float()
        units = 1 if self.per == "layer" else min(step.kv_heads, scores.shape[1])
        pooled = scores.unflatten(1, (units, -1))
        if self.how == "max":
            return pooled.amax(2)
        return pooled.sum(2) if self.how == "sum" else pooled.mean(2)
