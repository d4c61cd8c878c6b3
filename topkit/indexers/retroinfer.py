# pyright: strict
"""RetroInfer: the best clusters of keys as they are, and the centroids of the next ones in their keys' place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers import checks
from topkit.indexers.base import Rest, Selection, Step
from topkit.indexers.clustered import Clustered, ClusteredIndex
from topkit.indexers.clusters import centroid_scores
from topkit.indexers.kmeans import kmeans, means_of, spread
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits


@dataclass(frozen=True)
class retroinfer(Clustered):
    """Keeps whole clusters while k holds them, and estimates the next ones by their centroids.

    Clusters are ranked by the softmax over centroids, summed over a KV group. Those behind the last that k holds,
    the share `estimate` of all, stand in the softmax as one pseudo-key each: its logit is scaling q . centroid +
    ln(size), its value the mean of the members'. One cluster for `per_cluster` keys, by cosine of keys about
    their mean, in segments of `segment` keys, from keys spread evenly (first by dot product, as in its code).
    The first `sink` and the newest `window` keys are always kept; of appended keys the oldest `update` are
    clustered once there are so many behind the window (0: never). k counts all keys that are kept; the paper
    sets it to 1.8 % of the context and the steady zone.
    Source: arXiv 2505.02922, section 4.
    """

    per_cluster: int = 16
    sink: int = 4
    window: int = 64
    update: int = 1024
    segment: int = 8192
    estimate: float = 0.232
    iterations: int = 10

    source: ClassVar[str] = "arXiv 2505.02922"
    cost: ClassVar[str] = (
        "reads 1 centroid for per_cluster keys, and the members and values of the best"
    )
    valued: ClassVar[bool] = True
    grouped: ClassVar[bool] = True
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"per_cluster": range(1, 4097)}
    examples: ClassVar[tuple[str, ...]] = (
        "retroinfer(per_cluster=4, sink=1, window=2, update=8, segment=16)",
        "retroinfer()",
        "retroinfer(per_cluster=3, sink=0, window=0, update=0, estimate=0)",
    )

    def __post_init__(self) -> None:
        self.check()
        for name in ("per_cluster", "segment", "iterations"):
            checks.whole(self, name, 1)
        checks.share(self, "estimate")

    def traits(self) -> Traits:
        # What is estimated no list may cut or add to.
        return replace(super().traits(), rest=self.estimate > 0, may_come_short=True)

    @property
    def ratio(self) -> float:
        return 1 / self.per_cluster

    def costs(self, shape: Shape) -> Cost:
        s = shape
        clusters = self.ratio * (s.T - least(s.T, self.sink + self.window))
        return super().costs(s).besides(read=s.Hk * self.estimate * clusters * s.Dv * s.e)

    def cluster(
        self, keys: Tensor, positions: Tensor, counts: Tensor, step: Step
    ) -> tuple[Tensor, int]:
        there = torch.arange(keys.shape[2], device=keys.device) < counts[:, None]
        one = torch.zeros_like(keys[..., 0], dtype=torch.int64).masked_fill(~there[:, None], -1)
        keys = keys.double() - means_of(keys, one, 1)[0]
        segments = (counts / self.segment + 0.5).floor().clamp_min(1).long()
        labels, total = one, 0
        for number in range(int(segments.max())):
            begin = number * self.segment
            size = torch.where(segments > number + 1, self.segment, counts - begin)
            own = size.masked_fill(segments <= number, 0)
            stop = begin + int(own.max())
            clusters = (own / self.per_cluster + 0.5).floor().clamp_min(1).long().minimum(own)
            first = spread(own, clusters)
            found = kmeans(
                keys[:, :, begin:stop],
                own,
                first,
                iterations=self.iterations,
                by="cosine",
                begin="product",
            )
            part = labels[:, :, begin:stop]
            labels[:, :, begin:stop] = torch.where(found >= 0, found + total, part)
            total += first.shape[2]
        return labels, total

    def score(self, queries: Tensor, index: ClusteredIndex, step: Step) -> Tensor:
        return self._grouped(centroid_scores(queries, index.clusters), step)

    def choose(
        self, index: ClusteredIndex, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        products = centroid_scores(queries, index.clusters)
        order, sizes = index.ranked(self._grouped(products, step))
        return {k: self._at(index, queries, products, order, sizes, k, step) for k in ks}

    def _grouped(self, products: Tensor, step: Step) -> Tensor:
        """The softmax over clusters, summed over each KV group's heads [B, Hk, Tq, C], -inf for empty ones."""
        rows, heads, count, clusters = products.shape
        units = min(step.kv_heads, heads)
        shares = step.weights(products).nan_to_num(0)
        shares = shares.view(rows, units, heads // units, count, clusters).sum(2).float()
        empty = (products == -torch.inf)[:, :: heads // units]
        return shares.masked_fill(empty, -torch.inf)

    def _at(
        self, index: ClusteredIndex, queries: Tensor, products: Tensor, order: Tensor,
        sizes: Tensor, k: int, step: Step,
    ) -> Selection:  # fmt: skip
        lists = order.shape[1]
        room = min(k, index.slots) - (index.ends(queries, k, step) >= 0).sum(-1, keepdim=True)
        fits = sizes.cumsum(-1) <= room
        chosen = index.kept(queries, order, sizes.masked_fill(~fits, 0), k, step)
        chosen = replace(chosen, **index.cost(lists, k, queries.shape[2], step))
        taken, there = (x.sum(-1, keepdim=True) for x in (fits & (sizes > 0), sizes > 0))
        return self._with_rest(chosen, index, products, order, taken, there, step)

    def _with_rest(
        self, chosen: Selection, index: ClusteredIndex, products: Tensor, order: Tensor,
        taken: Tensor, there: Tensor, step: Step,
    ) -> Selection:  # fmt: skip
        """The selection, and as pseudo-keys the clusters behind the first `taken` of those that are `there`."""
        values, most = index.clusters.values, math.floor(self.estimate * order.shape[3] + 0.5)
        if self.estimate == 0 or order.shape[3] == 0 or values is None:
            return chosen
        number = (self.estimate * there + 0.5).floor().clamp_min(1)
        place = torch.arange(max(most, 1), device=order.device)
        seen = (place < number) & (taken + place < there)
        which = order.gather(-1, (taken + place).clamp_max(order.shape[3] - 1))
        lists, times = order.shape[1], products.shape[1] // order.shape[1]
        sizes = index.clusters.by_list(index.clusters.sizes, lists).gather(-1, which.flatten(2))
        means = values[:, :: values.shape[1] // lists]
        at = which.flatten(2)[..., None].expand(-1, -1, -1, values.shape[3])
        means = means.gather(2, at).view(*which.shape, -1)
        each = [x.repeat_interleave(times, 1) for x in (which, sizes.view_as(which), means, seen)]
        which, sizes, means, seen = each
        logits = step.scaling * step.capped(products.gather(-1, which)) + sizes.log()
        logits = logits.masked_fill(~seen, -torch.inf).float()
        read = lists * len(place) * values.shape[3] * values.element_size()
        cost = {"bytes_read": chosen.bytes_read + read} if step.counted else {}
        return replace(chosen, rest=Rest(means.float(), logits=logits), **cost)
