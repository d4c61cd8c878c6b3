# pyright: strict
"""The family "cluster the keys by what they hold, keep the clusters whose centroids score best"."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.cluster_cost import cluster_costs
from topkit.indexers.clusters import (
    Clusters,
    cut,
    forced,
    grouped,
    joined,
    none,
    own_keys_first,
)  # fmt: skip
from topkit.indexers.forced import say_full
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.compact import compact


class Clustered(Indexer):
    """A recipe that writes how keys are clustered and how clusters are scored.

    Outside all clusters stand the first `sink` keys, the newest `window`, and those that came since, until there are
    `update` of them (0: for good), which are then clustered among themselves. They are kept before any cluster.
    """

    sink: int
    window: int
    update: int
    iterations: int

    family: ClassVar[str] = "clusters"
    # Whether the means of clusters' values are wanted.
    valued: ClassVar[bool] = False
    # Whether the heads of a group have one list.
    grouped: ClassVar[bool] = False

    def traits(self) -> Traits:
        # A longer build clusters otherwise; a cluster has seen keys that stand behind a query.
        return Traits(needs=frozenset({"cache"}), drifts=True, causal_codes=False)

    @property
    def ratio(self) -> float:
        """Clusters for a key."""
        raise NotImplementedError(f"{type(self).__name__}.ratio")

    def costs(self, shape: Shape) -> Cost:
        return cluster_costs(self, shape)

    def check(self) -> None:
        """Require whole numbers of keys."""
        for name in ("sink", "window", "update"):
            whole(self, name, 0)

    @abstractmethod
    def cluster(
        self, keys: Tensor, positions: Tensor, counts: Tensor, step: Step
    ) -> tuple[Tensor, int]:
        """The cluster of each key, and how many clusters there are.

        Shapes: keys [B, Hk, n, D], of which each row's first `counts` [B] are there, at positions [B, n] from
        its first real token -> [B, Hk, n], -1 for none.
        """

    @abstractmethod
    def score(self, queries: Tensor, index: ClusteredIndex, step: Step) -> Tensor:
        """Scores of clusters [B, Hs, Tq, C] float32, -inf where one may not be kept."""

    def begun(self, index: ClusteredIndex, step: Step) -> ClusteredIndex:
        """An index that was just built, with what else it holds."""
        return index

    def choose(
        self, index: ClusteredIndex, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        """Selections at several budgets; the last cluster that k reaches is cut to its first keys."""
        order, sizes = index.ranked(self.score(queries, index, step))
        longest = index.kept(queries, order, sizes, max(ks), step)
        lists = order.shape[1]
        return {
            k: replace(longest.cut(k), **index.cost(lists, k, queries.shape[2], step)) for k in ks
        }

    def build(self, keys: Tensor, step: Step) -> Index:
        values = step.cache.values if self.valued else None
        if self.valued and values is None:
            raise InputError(f"{self} needs 'values'; this driver's cache has none")
        index = ClusteredIndex(self, keys.shape[2], none(keys, values))
        if keys.shape[2] > self.window + self.sink:
            index.close(keys.shape[2] - self.window, step)
        return self.begun(index, step)


@dataclass
class ClusteredIndex(Index):
    """Clusters of the slots before `closed`; extra, by name, tensors [B, ...].

    segments: of slots clustered together, where they end, and how many clusters and members were before them.
    """

    recipe: Clustered
    slots: int
    clusters: Clusters
    closed: int = 0
    segments: tuple[tuple[int, int, int], ...] = ()
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        """What each row alone would hold."""
        held = [*self.clusters.tensors.values(), *self.extra.values()]
        return sum(x.numel() * x.element_size() for x in held)

    def append(self, keys: Tensor, step: Step) -> None:
        self.slots += keys.shape[2]
        update, window = self.recipe.update, self.recipe.window
        while update and self.slots - self.closed >= update + window:
            self.close(self.closed + update, step)

    def close(self, stop: int, step: Step) -> None:
        """Cluster the slots from `closed` to `stop`."""
        rows, begin, recipe = len(self.clusters.members), self.closed, self.recipe
        cache = step.cache.until(stop)
        start = step.starts(cache.keys.device).expand(rows)
        # Each row's own keys come first, so that nothing depends on what stands before them.
        ahead = (start + recipe.sink - begin).clamp(0, stop - begin)[:, None]
        slots = begin + ahead + torch.arange(stop - begin, device=ahead.device)
        keys = own_keys_first(cache.keys.detach()[:, :, begin:], slots, begin)
        counts = stop - begin - ahead[:, 0]
        labels, count = recipe.cluster(keys, slots - start[:, None], counts, step)
        values = None
        if recipe.valued and cache.values is not None:
            values = own_keys_first(cache.values.detach()[:, :, begin:], slots, begin)
        old, new = self.clusters, grouped(keys, values, slots[:, None], labels, count)
        self.segments += ((stop, old.count, old.members.shape[2]),)
        self.clusters, self.closed = joined(old, new), stop

    def truncate(self, length: int, step: Step) -> None:
        self.slots = length
        while self.segments and self.segments[-1][0] > length:
            *before, (_, count, held) = self.segments
            if not before and length > 0:
                # The keys of the build are clustered once: what is left of each cluster stays together.
                self.clusters = cut(self.clusters, length, step.cache)
                self.segments, self.closed = ((length, 0, 0),), length
            else:
                self.clusters = self.clusters.until(count, held)
                self.segments, self.closed = tuple(before), before[-1][0] if before else 0

    def reorder(self, rows: Tensor) -> None:
        self.clusters = self.clusters.of(rows)
        self.extra = {name: x[rows] for name, x in self.extra.items()}

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.select_many(queries, [k], step)[k]

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        recipe = self.recipe
        if self.clusters.count and min(ks) <= (forced := recipe.sink + recipe.window):
            say_full(recipe, forced, min(ks), "no cluster is chosen")
        return recipe.choose(self, queries, ks, step)

    def ranked(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Clusters best first, of equal ones the lowest, and how many keys each has to keep [B, Hs, Tq, C]."""
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        sizes = self.clusters.by_list(self.clusters.sizes, order.shape[1])
        sizes = sizes.gather(-1, order.flatten(2)).view_as(order)
        return order, sizes.masked_fill(scores == -torch.inf, 0)

    def kept(self, queries: Tensor, order: Tensor, sizes: Tensor, k: int, step: Step) -> Selection:
        """What waits, and then the keys of clusters in this order, so many of each."""
        width, (rows, lists, count) = min(k, self.slots), order.shape[:3]
        ends = self.ends(queries, width, step).expand(rows, lists, count, -1)
        # A query of before the clustering does not see all members: what it sees is known once they are listed.
        wide = width if step.stop is None and count == 1 else self.clusters.members.shape[2]
        slots = self.clusters.listed(order, sizes, wide)
        stop = step.stops(self.slots, count, slots.device)[:, None, :, None]
        slots = slots.masked_fill(slots >= stop, -1)
        return Selection(compact(torch.cat([ends, slots], -1), width))

    def ends(self, queries: Tensor, width: int, step: Step) -> Tensor:
        """The sinks and the keys that wait [B or 1, 1, Tq, w]."""
        return forced(step, self.slots, self.closed, self.recipe.sink, width, queries)

    def cost(self, lists: int, k: int, count: int, step: Step) -> dict[str, Any]:
        """What scoring every cluster costs: its centroid, size and place, and the members of the best."""
        if not step.counted:
            return {}
        clusters = self.clusters
        there = (clusters.sizes > 0).sum(-1)[..., None].float()
        each = clusters.centroids.shape[3] * clusters.centroids.element_size() + 8
        members = min(k, clusters.members.shape[2])
        scored, read = there.mean(1), there.sum(1) * each + lists * members * 4
        return {"keys_scored": scored.expand(-1, count), "bytes_read": read.expand(-1, count)}
