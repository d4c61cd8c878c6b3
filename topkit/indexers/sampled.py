# pyright: strict
"""A fixed split: the best keys as they are, a weighted sample for all the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import share
from topkit.indexers.combinator import Combinator
from topkit.indexers.exact import exact
from topkit.indexers.noise import noise
from topkit.indexers.scored import waiting
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.select_topk import select_topk

_SAMPLE = 5  # salt


@dataclass(frozen=True)
class sampled(Combinator):
    """Spends the share `top` of k on base's best keys and the rest on a uniform sample of the others.

    A drawn key stands for (others / drawn) keys, by its log-weight. k fixes the sample's size, where
    `vattention` sets it from an error bound; sinks and a window are
    sampled(keep(exact(), sink=..., window=...)). Source: the estimate of arXiv 2510.05688, section 4.
    """

    base: Indexer = exact()  # noqa: RUF009 (a frozen value)
    top: float = 0.5

    family: ClassVar[str] = "sampling"
    source: ClassVar[str] = "arXiv 2510.05688"
    cost: ClassVar[str] = "as base"
    examples: ClassVar[tuple[str, ...]] = (
        "sampled()",
        "sampled(keep(sign(), sink=1, window=2), top=0.7)",
        "sampled(shared(quantized(), per='layer'), top=0.2)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "top")
        if self.top == 0:
            raise InputError("sampled: top must be above 0; got 0: a sample alone has no best keys")

    def traits(self) -> Traits:
        fixed = as_written(self, sampled, "choose", "choose_many") and self.base.traits().fixed
        return replace(super().traits(), weighted=True, fixed=fixed)

    def costs(self, shape: Shape) -> Cost:
        s = shape
        base = self.base.costs(replace(s, k=math.ceil(self.top * s.k)))
        return replace(base.besides(operations=s.Hq * s.T), kept=s.kept)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        return self.choose_many(index, queries, [k], step)[k]

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        tops = {k: math.ceil(self.top * k) for k in ks}
        firsts = index.select_many(queries, list(tops.values()), step.given_to(self.base))
        draws = noise(
            step, step.slots(index.length), firsts[max(tops.values())].indices, salt=_SAMPLE
        )
        return {k: self._sampled(firsts[top], k, draws, step) for k, top in tops.items()}

    def _sampled(self, first: Selection, k: int, draws: Tensor, step: Step) -> Selection:
        """The best keys `first`, and of the others those of the greatest draws [B, Hs, Tq, T]."""
        length = draws.shape[-1]
        width = min(k, length)
        best = first.indices
        log_weights = torch.zeros(best.shape, device=best.device)
        if best.shape[-1] == width:
            return replace(first, log_weights=log_weights)
        left = others(best, step, length)
        drawn = select_topk(
            draws.masked_fill(~left, -torch.inf), width - best.shape[-1], **waiting(step)
        )
        stands_for = left.sum(-1, keepdim=True) / (drawn >= 0).sum(-1, keepdim=True).clamp_min(1)
        weight = stands_for.log().masked_fill(drawn < 0, 0.0)
        slots, log_weights = torch.cat([best, drawn], -1), torch.cat([log_weights, weight], -1)
        order = (slots < 0).sort(dim=-1, stable=True).indices
        return replace(
            first, indices=slots.gather(-1, order), log_weights=log_weights.gather(-1, order)
        )


def others(chosen: Tensor, step: Step, length: int) -> Tensor:
    """Which visible slots [B, Hs, Tq, T] were not chosen."""
    times = torch.zeros(*chosen.shape[:-1], length, device=chosen.device)
    times.scatter_add_(-1, chosen.clamp_min(0), (chosen >= 0).float())
    visible = step.visible(length, chosen.shape[2], chosen.device)
    return times == 0 if visible is None else (times == 0) & visible
