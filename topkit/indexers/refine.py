# pyright: strict
"""Two stages: a cheap selector proposes, exact scores decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
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
        return self.choose_many(index, queries, [k], step)[k]

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        wide = [k * self.factor for k in ks]
        proposals = index.select_many(queries, wide, step.given_to(self.base))
        longest = proposals[max(wide)].indices
        # Read once where every shorter proposal is the beginning of the longest.
        scores = gather_scores(queries, step.cache.keys, longest)
        chosen: dict[int, Selection] = {}
        for k, proposal in zip(ks, (proposals[k] for k in wide), strict=True):
            slots = proposal.indices
            same = longest[..., : slots.shape[-1]]
            own = (
                scores[..., : slots.shape[-1]]
                if same is slots or torch.equal(same, slots)
                else gather_scores(queries, step.cache.keys, slots)
            )
            chosen[k] = self._best(proposal, own, k, step)
        return chosen

    def _best(self, proposal: Selection, scores: Tensor, k: int, step: Step) -> Selection:
        """The k best of a proposal by the exact scores [B, Hq, Tq, n] of its keys."""
        keys, heads = step.cache.keys, scores.shape[1]
        slots = proposal.indices.repeat_interleave(heads // proposal.indices.shape[1], 1)
        # Slots in ascending order, so that ties fall to the lowest as everywhere.
        slots, order = slots.sort(-1)
        places = select_topk(scores.gather(-1, order), min(k, slots.shape[-1]))
        chosen = slots.gather(-1, places.clamp_min(0)).masked_fill(places < 0, -1)
        read = (slots >= 0).sum(-1).float()
        return Selection(
            chosen,
            keys_scored=proposal.keys_scored + read.mean(1),
            bytes_read=proposal.bytes_read + read.sum(1) * keys.shape[3] * keys.element_size(),
        )
