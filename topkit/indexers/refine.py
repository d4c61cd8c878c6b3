# pyright: strict
"""Two stages: a cheap selector proposes, exact scores decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.checks import whole
from topkit.indexers.combinator import Combinator, best_at
from topkit.indexers.exact import chosen_scores
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits, as_written
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

    def traits(self) -> Traits:
        own = as_written(self, refine, "choose", "choose_many")
        return replace(super().traits(), fixed=own and self.base.traits().fixed)

    def costs(self, shape: Shape) -> Cost:
        s = shape
        base = self.base.costs(replace(s, k=self.factor * s.k))
        # Heads that share a list read its keys once.
        read = base.lists * base.kept * s.D * s.e
        cost = base.besides(read=read, operations=s.Hq * base.kept * s.D)
        return replace(cost, lists=s.Hq, kept=least(s.k, base.kept))

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        if step.at is not None:
            return best_at(self.candidates(index, queries, k, step), k, step)
        return self.choose_many(index, queries, [k], step)[k]

    def candidates(self, index: Index, queries: Tensor, k: int, step: Step) -> Candidates:
        inner = replace(step.given_to(self.base), ordered=False)
        proposal = index.select(queries, k * self.factor, inner)
        slots = proposal.indices
        room = step.slots(index.length)
        scores = chosen_scores(queries, slots, step, room, step.backend)
        if not step.counted:
            return Candidates(scores, slots)
        return Candidates(scores, slots, **self._cost(proposal, step))

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        wide = [k * self.factor for k in ks]
        proposals = index.select_many(queries, wide, step.given_to(self.base))
        longest = proposals[max(wide)].indices
        # Read once where every shorter proposal is the beginning of the longest.
        scores = chosen_scores(queries, longest, step, index.length)
        chosen: dict[int, Selection] = {}
        for k, proposal in zip(ks, (proposals[k] for k in wide), strict=True):
            slots = proposal.indices
            same = longest[..., : slots.shape[-1]]
            own = (
                scores[..., : slots.shape[-1]]
                if same is slots or torch.equal(same, slots)
                else chosen_scores(queries, slots, step, index.length)
            )
            chosen[k] = self._best(proposal, own, k, step)
        return chosen

    def _best(self, proposal: Selection, scores: Tensor, k: int, step: Step) -> Selection:
        """The k best of a proposal by the exact scores [B, Hq, Tq, n] of its keys."""
        heads = scores.shape[1]
        slots = proposal.indices.repeat_interleave(heads // proposal.indices.shape[1], 1)
        chosen = select_topk(scores, k, slots=slots, backend="torch")
        return Selection(chosen, **self._cost(proposal, step))

    def _cost(self, proposal: Selection, step: Step) -> dict[str, Any]:
        """What a proposal cost, and reading its keys: those of a list once for its heads in a group."""
        cache, lists = step.cache, proposal.indices.shape[1]
        read = (proposal.indices >= 0).sum(-1).float()
        times = max(cache.heads // lists, 1)
        return {
            "keys_scored": proposal.keys_scored + read.mean(1),
            "bytes_read": proposal.bytes_read
            + read.sum(1) * times * (cache.key_bytes // cache.heads),
        }
