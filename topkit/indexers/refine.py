"""Two stages: a cheap selector proposes, exact scores decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.combinator import Combinator
from topkit.kernels.gather_attention import gather_scores
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class refine(Combinator):
    """Reads the keys of base's best factor * k in full and keeps the k best, each query head its own."""

    factor: int = 4

    source: ClassVar[str] = "two-stage search"
    cost: ClassVar[str] = "as base, and reads factor * k keys"
    reads: ClassVar[frozenset[str]] = frozenset({"cache"})
    examples: ClassVar[tuple[str, ...]] = (
        "refine(sign(), factor=2)",
        "refine(quest(page_size=4))",
        "refine(shared(quantized(dtype='int4'), per='layer'))",
        "refine(streaming_llm(sink=1, window=6))",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "factor", 1)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        first = index.select(queries, k * self.factor, step.given_to(self.base))
        keys, heads = step.cache.keys, queries.shape[1]
        slots = first.indices.repeat_interleave(heads // first.indices.shape[1], 1)
        scores = gather_scores(queries, keys, slots)
        # Slots in ascending order, so that ties fall to the lowest as everywhere.
        slots, order = slots.sort(-1)
        places = select_topk(scores.gather(-1, order), min(k, index.length))
        chosen = slots.gather(-1, places.clamp_min(0)).masked_fill(places < 0, -1)
        read = (slots >= 0).sum(-1).float()
        return Selection(
            chosen,
            keys_scored=first.keys_scored + read.mean(1),
            bytes_read=first.bytes_read + read.sum(1) * keys.shape[3] * keys.element_size(),
        )
