# pyright: strict
"""Tactic: keys in the order of their clusters, as many as a fitted curve needs for the mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import share, whole
from topkit.indexers.curve import Curve
from topkit.indexers.kmeans import kmeans, means_of, nearest, spread
from topkit.indexers.scored import Codes, Scored, ScoredIndex, cut_each, masked
from topkit.indexers.traits import Traits
from topkit.kernels.score import score


@dataclass(frozen=True)
class tactic(Scored):
    """Keeps keys in the order of their clusters until they hold `mass` of the attention, at most k.

    Weights are exact for the share `exact` of the order; behind it they follow a / x + b at place x, through
    the mean weights of `sample` keys about a tenth and six tenths of the order. K-means of the keys at build,
    `cluster_size` a cluster on average; a key that comes later joins the nearest centroid, which stays (the
    paper clusters new keys anew in batches). Source: arXiv 2502.12216, sections 3 and 4.
    """

    mass: float = 0.9
    cluster_size: int = 32
    exact: float = 0.02
    sample: int = 32
    iterations: int = 10

    family: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv 2502.12216"
    cost: ClassVar[str] = "reads the centroids, a label a key, and some keys"
    examples: ClassVar[tuple[str, ...]] = (
        "tactic()",
        "tactic(mass=0.5, cluster_size=4, exact=0.1, sample=3)",
    )

    def __post_init__(self) -> None:
        share(self, "mass")
        share(self, "exact")
        whole(self, "cluster_size", 1)
        whole(self, "sample", 1)
        whole(self, "iterations", 1)

    def traits(self) -> Traits:
        needs = frozenset({"cache"})
        return Traits(needs=needs, exhaustive=False, may_come_short=True, drifts=True)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"labels": keys.to(torch.int32)}

    def build(self, keys: Tensor, step: Step) -> Index:
        keys, start = keys.detach().float(), step.starts(keys.device)
        length = keys.shape[2]
        counts = (length - start).clamp_min(0).expand(len(keys))
        # The real keys first, and then what stands for none.
        at = (start[:, None] + torch.arange(length, device=keys.device)).clamp_max(length - 1)
        points = keys.gather(2, at.expand(len(keys), -1)[:, None, :, None].expand_as(keys))
        first = spread(counts, (-(-counts // self.cluster_size)).clamp_min(1))
        labels = kmeans(points, counts, first, iterations=self.iterations, cosine=False)
        centroids = means_of(points, labels, first.shape[2])[0].float()
        index = TacticIndex(self, centroids=centroids, usable=first >= 0)
        index.append(keys, step)
        return index


@dataclass
class TacticIndex(ScoredIndex):
    """The cluster of every key, and centroids [B, Hk, C, D] that stay; usable [B, 1, C]: those that are some."""

    centroids: Tensor = field(kw_only=True)
    usable: Tensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        own = (self.centroids, self.usable)
        return super().nbytes + sum(x.untyped_storage().nbytes() for x in own)

    def append(self, keys: Tensor, step: Step) -> None:
        usable = self.usable.expand(-1, keys.shape[1], -1)
        labels = nearest(keys.detach(), self.centroids.double(), usable, cosine=False)
        super().append(labels[..., None], step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.centroids, self.usable = self.centroids[rows], self.usable[rows]

    def score(self, queries: Tensor, step: Step) -> Tensor:
        raise InputError(f"{self.recipe} scores clusters of keys, which says too little of each")

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        recipe = self.recipe
        assert isinstance(recipe, tactic)
        length = self.slots
        scores = self._by_cluster(queries)
        order = masked(scores, step).sort(dim=-1, descending=True, stable=True).indices
        seen = step.seen(length, queries.shape[2], queries.device)
        curve = Curve(recipe.sample, math.ceil(recipe.exact * length), recipe.exact)
        keep, read = curve.needed(queries, order, seen, recipe.mass, step)
        width = min(k, length)
        chosen = order[..., :width].masked_fill(~keep[..., :width], -1)
        return Selection(chosen, **self._cost(queries.shape[1], seen, read, step))

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return cut_each(self.select(queries, max(ks), step), ks)

    def _by_cluster(self, queries: Tensor) -> Tensor:
        """For each key the score of its centroid [B, Hq, Tq, T]."""
        labels = self.codes["labels"][..., 0].long()
        labels = labels.repeat_interleave(queries.shape[1] // labels.shape[1], 1)[:, :, None]
        of_clusters = score(queries, self.centroids)
        return of_clusters.gather(-1, labels.expand(-1, -1, queries.shape[2], -1))

    def _cost(self, heads: int, seen: Tensor, read: Tensor, step: Step) -> dict[str, Any]:
        """Centroids that were scored, labels, and the keys of a query and head that were read in full."""
        clusters = torch.minimum(self.usable.sum(-1), seen)
        groups, width = self.centroids.shape[1], self.centroids.shape[3]
        key = step.cache.key_bytes // step.cache.heads
        fixed = groups * (clusters * width * 4 + seen * 4)
        return {"keys_scored": clusters + read, "bytes_read": fixed + read * heads * key}
