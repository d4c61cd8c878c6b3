# pyright: strict
"""Squeezed Attention: of a fixed context the clusters that a threshold lets through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from topkit.errors import InputError
from topkit.indexers.base import Step
from topkit.indexers.checks import share, whole
from topkit.indexers.clustered import Clustered, ClusteredIndex
from topkit.indexers.clusters import Clusters, centroid_scores
from topkit.indexers.kmeans import kmeans, plus_plus
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits

_MARGIN = 1e-5  # what equal shares may be off by


@dataclass(frozen=True)
class squeezed(Clustered):
    """Keeps the clusters whose estimated attention passes a threshold, and every key that came later.

    A cluster's estimate is exp(scaling q . c) / sum_j N_j exp(scaling q . c_j), N_j its number of keys; the
    threshold is the quantile `sparsity` of what the queries of the prompt's last `window` tokens give on
    average to each key and query head. The paper takes one over all layers, here each layer has its own.
    Clusters, the share `share` of the keys in number, are those of the prompt before the window, by k-means++
    of keys of length one; they stay, and appended keys are all kept. Where k does not hold all, the newest go
    first, then the best clusters. Source: arXiv 2411.09688, sections 3.1 and 3.2, without its hierarchy.
    """

    share: float = 0.05
    sparsity: float = 0.7
    window: int = 100
    iterations: int = 10

    source: ClassVar[str] = "arXiv 2411.09688"
    cost: ClassVar[str] = "reads a share of centroids, and the members of those above the threshold"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"share": [n / 1000 for n in range(1, 1001)]}
    examples: ClassVar[tuple[str, ...]] = (
        "squeezed(share=0.3, sparsity=0.5, window=2)",
        "squeezed()",
        "squeezed(share=0.5, sparsity=0.9, window=1)",
    )

    sink = 0
    update = 0

    def __post_init__(self) -> None:
        share(self, "share")
        share(self, "sparsity")
        whole(self, "window", 1)
        whole(self, "iterations", 1)
        if self.share == 0:
            raise InputError("squeezed: share must be above 0, and at most 1; got 0")

    def traits(self) -> Traits:
        needs = frozenset({"cache", "prefill_queries"})
        # What is appended is in no cluster: several queries may choose at once.
        own = {"causal_codes": True, "exhaustive": False, "may_come_short": True}
        return replace(super().traits(), needs=needs, **own)

    @property
    def ratio(self) -> float:
        return self.share

    def costs(self, shape: Shape) -> Cost:
        cost = super().costs(shape)
        return replace(cost, index=cost.index + 8 / shape.T)  # the threshold

    def cluster(
        self, keys: Tensor, positions: Tensor, counts: Tensor, step: Step
    ) -> tuple[Tensor, int]:
        keys = normalize(keys.double(), dim=-1)
        clusters = (self.share * counts).floor().clamp_min(1).long().minimum(counts)
        first = plus_plus(keys, positions, counts, clusters, step)
        return kmeans(keys, counts, first, iterations=self.iterations, by="distance"), first.shape[
            2
        ]

    def begun(self, index: ClusteredIndex, step: Step) -> ClusteredIndex:
        queries = step.prefill_queries[:, :, -self.window :]
        slots = torch.arange(index.slots - queries.shape[2], index.slots, device=queries.device)
        real = (slots >= step.starts(queries.device)[:, None])[:, None, :, None]
        shares = _shares(queries, index.clusters, step).exp()
        shares = shares.masked_fill(~real, 0).sum(2) / real.sum(2).clamp_min(1)
        sizes = index.clusters.by_list(index.clusters.sizes, queries.shape[1])
        threshold = quantile(shares.flatten(1), sizes.flatten(1), self.sparsity)
        return replace(index, extra={"threshold": threshold})

    def score(self, queries: Tensor, index: ClusteredIndex, step: Step) -> Tensor:
        shares = _shares(queries, index.clusters, step)
        if not index.clusters.count:
            return shares
        least = index.extra["threshold"].log()[:, None, None, None] - _MARGIN
        return shares.masked_fill(shares < least, -torch.inf).float()


def _shares(queries: Tensor, clusters: Clusters, step: Step) -> Tensor:
    """The log of the attention that each key of a cluster is estimated to get [B, Hq, Tq, C] float64."""
    scores = step.scaling * step.capped(centroid_scores(queries, clusters))
    sizes = clusters.by_list(clusters.sizes, queries.shape[1])[:, :, None]
    whole = (scores + sizes.log()).logsumexp(-1, keepdim=True) if clusters.count else scores
    if step.softmax.sinks is not None and clusters.count:
        whole = whole.logaddexp(step.softmax.of_heads(scores))
    return (scores - whole).nan_to_num(-torch.inf, neginf=-torch.inf)


def quantile(values: Tensor, weights: Tensor, at: float) -> Tensor:
    """The quantile `at` of values [B, n], each there as often as its weight [B, n], between two linearly."""
    if not values.shape[1]:
        return values.new_zeros(len(values))
    values, order = values.sort(dim=-1)
    reached = weights.gather(-1, order).cumsum(-1)
    place = at * (reached[:, -1:] - 1).clamp_min(0).double()
    around = torch.cat([place.floor(), place.ceil()], -1).long()
    which = torch.searchsorted(reached, around, right=True).clamp_max(values.shape[1] - 1)
    low, high = values.gather(-1, which).unbind(-1)
    return low + (high - low) * (place - place.floor())[:, 0]
