# pyright: strict
"""Ada-KV: the budget of a layer, split over its heads by where the attention is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import share
from topkit.indexers.combinator import Combinator, every_score
from topkit.indexers.exact import exact
from topkit.indexers.scored import best, masked
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class adakv(Combinator):
    """Splits a layer's budget over its heads: the heaviest keys of all heads are kept, wherever they are.

    k caps one head's list; a head has `part` of k on average, rounded up, and at least `safeguard` of that.
    Weights are the softmax of base's scores, at every query, where the paper evicts once behind the prompt.
    Source: arXiv 2407.11550, algorithm 1; safeguard 0.2, as its authors' code has it.
    """

    base: Indexer = exact()  # noqa: RUF009 (a frozen value)
    part: float = 0.5
    safeguard: float = 0.2

    family: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv 2407.11550"
    cost: ClassVar[str] = "as base"
    examples: ClassVar[tuple[str, ...]] = (
        "adakv()",
        "adakv(shared(exact()), part=1.0, safeguard=0.0)",
        "adakv(quantized(dtype='int4'), part=0.3, safeguard=0.5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "part")
        share(self, "safeguard")
        if self.part == 0:
            raise InputError("adakv: part must be above 0; got 0: the layer would keep nothing")
        every_score(self)

    def traits(self) -> Traits:
        return replace(super().traits(), exhaustive=False, may_come_short=True)

    def costs(self, shape: Shape) -> Cost:
        return self.base.costs(shape).besides(operations=shape.Hq * shape.T)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        inner = step.given_to(self.base)
        scores = masked(index.score(queries, inner).float(), step)
        chosen = best(scores, k, step, index.bytes_per_key(inner))
        shares = step.weights(scores).gather(-1, chosen.indices.clamp_min(0))
        weights = shares.masked_fill(chosen.indices < 0, -torch.inf)
        kept = _split(weights, math.ceil(self.part * k), self.safeguard)
        place = torch.arange(weights.shape[-1], device=weights.device)
        return replace(chosen, indices=chosen.indices.masked_fill(place >= kept[..., None], -1))


def _split(weights: Tensor, mean: int, safeguard: float) -> Tensor:
    """How many keys each head keeps [B, H, Tq], of lists of weights [B, H, Tq, n], the heaviest first.

    Together they keep `mean` a head, and each at least its safeguard.
    """
    heads, width = weights.shape[1], weights.shape[-1]
    safe = min(math.ceil(safeguard * mean), width)
    first = weights[..., :safe]
    sure = torch.full_like(first, torch.inf).where(first > -torch.inf, first)
    together = torch.cat([sure, weights[..., safe:]], -1).transpose(1, 2).flatten(2)[:, None]
    places = select_topk(together, min(mean, width) * heads)[:, 0]
    head = places.div(width, rounding_mode="floor").masked_fill(places < 0, heads)
    counts = torch.zeros(*head.shape[:2], heads + 1, dtype=torch.long, device=head.device)
    counts.scatter_add_(-1, head, torch.ones_like(head))
    return counts[..., :heads].transpose(1, 2)
