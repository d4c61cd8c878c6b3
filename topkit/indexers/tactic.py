# pyright: strict
"""Tactic: keys in the order of their clusters, as many as a fitted curve needs for the mass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import share, whole
from topkit.indexers.curve import Curve
from topkit.indexers.fitted import of_rows
from topkit.indexers.kmeans import kmeans, means_of, spread
from topkit.indexers.scored import Codes, Scored, ScoredIndex, cut_each
from topkit.indexers.stated_cost import Cost, Shape, least, log2
from topkit.indexers.traits import Traits
from topkit.kernels.score import score


@dataclass(frozen=True)
class tactic(Scored):
    """Keeps keys in the order of their clusters until they hold `mass` of the attention, at most k.

    Weights are exact for the share `exact` of the order; behind it they follow a / x + b at place x, through
    the mean weights of `sample` keys about a tenth and six tenths of the order, at the means of their 1 / x;
    a and b are never below 0. K-means of the keys at build, `cluster_size` a cluster on average; a key that
    comes later joins the nearest centroid, which stays, where the paper clusters new keys anew in batches.
    Source: arXiv 2502.12216, sections 3 and 4.
    """

    mass: float = 0.9
    cluster_size: int = 32
    exact: float = 0.02
    sample: int = 32
    iterations: int = 10

    family: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv 2502.12216"
    cost: ClassVar[str] = "reads the centroids, a label a key, and some keys"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"cluster_size": range(1, 1025)}
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

    def costs(self, shape: Shape) -> Cost:
        s, clusters = shape, math.ceil(shape.T / self.cluster_size)
        sample = self.exact * s.T + 2 * least(self.sample, s.T / 8)
        return Cost(
            index=4 * s.Hk + (4 * s.Hk * s.D + 1) * clusters / s.T,
            read=4 * s.Hk * (clusters * s.D + s.T) + s.Hq * sample * s.D * s.e,
            operations=s.Hq * (clusters * s.D + s.T * log2(s.T) + sample * s.D),
            build=self.iterations * s.Hk * s.T * clusters * s.D,
            append=s.Hk * clusters * s.D,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

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
        labels = kmeans(points, counts, first, iterations=self.iterations, by="distance")
        centroids = means_of(points, labels, first.shape[2])[0].float()
        # A label for each slot again; padding has any.
        back = (torch.arange(length, device=keys.device) - start[:, None]).clamp_min(0)
        labels = labels.gather(2, back.expand(len(keys), -1)[:, None].expand_as(labels))
        codes = self.encode(labels.clamp_min(0)[..., None], step)
        return TacticIndex(self, codes, length, centroids=centroids, usable=first >= 0)


@dataclass
class TacticIndex(ScoredIndex):
    """The cluster of every key, and centroids [B, Hk, C, D] that stay; usable [B, 1, C]: those that are some."""

    centroids: Tensor = field(kw_only=True)
    usable: Tensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        own = (self.centroids, self.usable)
        return super().nbytes + sum(x.numel() * x.element_size() for x in own)

    def append(self, keys: Tensor, step: Step) -> None:
        # The nearest by distance: |key|^2, which is the same for all centroids, is left out.
        halves = self.centroids.square().sum(-1)[:, :, None] / 2
        near = keys.detach().float() @ self.centroids.mT - halves
        near = near.masked_fill(~self.usable[:, :, None], -torch.inf)
        super().append(near.max(-1).indices[..., None], step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.centroids, self.usable = (of_rows(x, rows) for x in (self.centroids, self.usable))

    def score(self, queries: Tensor, step: Step) -> Tensor:
        raise InputError(f"{self.recipe} scores clusters of keys, which says too little of each")

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        recipe = self.recipe
        assert isinstance(recipe, tactic)
        length = self.slots
        order = self._order(queries, step)
        seen = step.seen(length, queries.shape[2], queries.device)
        curve = Curve(recipe.sample, math.ceil(recipe.exact * length), recipe.exact)
        keep, read = curve.needed(queries, order, seen, recipe.mass, step)
        width = min(k, length)
        chosen = order[..., :width].masked_fill(~keep[..., :width], -1)
        return Selection(chosen, **self._cost(queries.shape[1], seen, read, step))

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return cut_each(self.select(queries, max(ks), step), ks)

    def _order(self, queries: Tensor, step: Step) -> Tensor:
        """All slots [B, Hq, Tq, T] by the scores of their centroids, the lowest of equal ones first.

        Those that a query does not see come last.
        """
        rows = len(queries)
        labels = self.of_codes(lambda codes: codes["labels"][..., 0].expand(rows, -1, -1)).long()
        labels = labels.repeat_interleave(queries.shape[1] // labels.shape[1], 1)[:, :, None]
        scores = score(queries, self.centroids)
        # How many clusters score higher: whole numbers are quicker to sort.
        above = torch.searchsorted(scores.sort(-1).values, scores, right=True)
        rank = (scores.shape[-1] - above).int()
        each = rank.gather(-1, labels.expand(-1, -1, queries.shape[2], -1))
        visible = step.visible(self.slots, queries.shape[2], queries.device)
        if visible is not None:
            each = each.masked_fill(~visible, scores.shape[-1])
        return each.sort(dim=-1, stable=True).indices

    def _cost(self, heads: int, seen: Tensor, read: Tensor, step: Step) -> dict[str, Any]:
        """Centroids that were scored, labels, and the keys of a query and head that were read in full."""
        clusters = torch.minimum(self.usable.sum(-1), seen)
        groups, width = self.centroids.shape[1], self.centroids.shape[3]
        key = step.cache.key_bytes // step.cache.heads
        fixed = groups * (clusters * width * 4 + seen * 4)
        return {"keys_scored": clusters + read, "bytes_read": fixed + read * heads * key}
