# pyright: strict
"""Clusters of keys: their centroids, and which slots each of them holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topkit.indexers.base import Cache, Step
from topkit.indexers.fitted import of_rows
from topkit.indexers.kmeans import means_of


@dataclass(frozen=True)
class Clusters:
    """Clusters of each row and KV head; those without members are there, and never kept.

    Shapes: centroids [B, Hk, C, D], the mean of the members, as keys are stored; values [B, Hk, C, Dv], the
    mean of their values (None: not wanted); sizes [B, Hk, C] int32; members [B, Hk, N] int32, the slots of one
    cluster behind those of another, ascending in each, -1 for none; first [B, Hk, C] int32, where each
    begins among them.
    """

    centroids: Tensor
    sizes: Tensor
    first: Tensor
    members: Tensor
    values: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if x is not None}

    @property
    def count(self) -> int:
        return self.centroids.shape[2]

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Clusters:
        return Clusters(**{name: change(name, x) for name, x in self.tensors.items()})

    def of(self, rows: Tensor) -> Clusters:
        """Row i becomes what row rows[i] was; rows that are all one are held once."""
        return self.map(lambda _, x: of_rows(x, rows))

    def until(self, count: int, held: int) -> Clusters:
        """The first `count` clusters, whose members are the first `held`; a copy, so that no more is kept."""
        return self.map(lambda name, x: x[:, :, : held if name == "members" else count].clone())

    def listed(self, order: Tensor, sizes: Tensor, width: int) -> Tensor:
        """The first `width` slots of clusters one behind the other [B, Hs, Tq, width], -1 last.

        Shapes: order, sizes [B, Hs, Tq, C], the clusters' numbers and how many slots of each.
        """
        rows, lists, count = order.shape[:3]
        if not self.count:
            return order.new_full((rows, lists, count, width), -1)
        stops = sizes.cumsum(-1)
        place = torch.arange(width, device=order.device).expand(*order.shape[:3], -1)
        which = torch.searchsorted(stops, place.contiguous(), right=True)
        there = place < stops[..., -1:]
        which = which.clamp_max(self.count - 1)
        cluster = order.gather(-1, which)
        at = self.by_list(self.first, lists).gather(-1, cluster.flatten(2)).view_as(cluster)
        at = at + place - (stops - sizes).gather(-1, which)
        slots = self.by_list(self.members, lists, gathered=at.masked_fill(~there, 0).flatten(2))
        return slots.view_as(at).masked_fill(~there, -1)

    def by_list(self, x: Tensor, lists: int, gathered: Tensor | None = None) -> Tensor:
        """What each of `lists` reads of a tensor [B, Hk, ...] of its KV head, int64; or its entries [B, lists, n]."""
        heads = x.shape[1]
        if lists < heads:  # heads that are copies of another
            x, heads = x[:, :: heads // lists], lists
        if gathered is None:
            return x.repeat_interleave(lists // heads, 1).long()
        return x.gather(2, gathered.reshape(len(x), heads, -1)).view_as(gathered).long()


def none(keys: Tensor, values: Tensor | None = None) -> Clusters:
    """No cluster yet, of keys [B, Hk, T, D]."""
    whole = keys.new_zeros(*keys.shape[:2], 0, dtype=torch.int32)
    empty = None if values is None else values[:, :, :0].clone()
    return Clusters(keys[:, :, :0].clone(), whole, whole.clone(), whole.clone(), empty)


def grouped(
    keys: Tensor, values: Tensor | None, slots: Tensor, labels: Tensor, count: int
) -> Clusters:
    """`count` clusters of keys [B, Hk, n, D] at slots [B or 1, 1 or Hk, n], by labels [B, Hk, n], -1 for none."""
    means, sizes = means_of(keys, labels, count)
    order = labels.where(labels >= 0, count).sort(dim=-1, stable=True).indices
    members = slots.expand_as(labels).gather(-1, order)
    members = members.masked_fill(labels.gather(-1, order) < 0, -1)
    valued = None if values is None else means_of(values, labels, count)[0].to(values.dtype)
    first = sizes.cumsum(-1) - sizes
    sizes, first, members = (x.to(torch.int32) for x in (sizes, first, members))
    return Clusters(means.to(keys.dtype), sizes, first, members, valued)


def joined(a: Clusters, b: Clusters) -> Clusters:
    """The clusters of `b` behind those of `a`."""
    b = replace(b, first=b.first + a.members.shape[2])
    return a.map(lambda name, x: torch.cat([x, getattr(b, name)], 2))


def cut(clusters: Clusters, length: int, cache: Cache) -> Clusters:
    """What clusters of one segment are without the members from slot `length` on: of means that are made anew."""
    ends = (clusters.first + clusters.sizes).long()
    place = torch.arange(clusters.members.shape[2], device=ends.device).expand_as(clusters.members)
    labels = torch.searchsorted(ends, place.contiguous(), right=True)
    there = (clusters.members >= 0) & (clusters.members < length)
    labels = labels.masked_fill(~there, -1)
    slots = clusters.members.long()
    at = slots.clamp(0, length - 1)[..., None]
    rows = len(slots)
    keys = cache.keys[:, :, :length].expand(rows, -1, -1, -1)
    keys = keys.gather(2, at.expand(-1, -1, -1, keys.shape[3]))
    values = None
    if clusters.values is not None:
        assert cache.values is not None
        values = cache.values[:, :, :length].expand(rows, -1, -1, -1)
        values = values.gather(2, at.expand(-1, -1, -1, values.shape[3]))
    return grouped(keys, values, slots, labels, clusters.count)


def own_keys_first(x: Tensor, slots: Tensor, begin: int) -> Tensor:
    """What stands at slots [B, n] of x [B, H, m, W], whose first slot is `begin`; anything beyond its end."""
    at = (slots - begin).clamp_max(x.shape[2] - 1)[:, None, :, None]
    return x.expand(len(slots), -1, -1, -1).gather(2, at.expand(-1, x.shape[1], -1, x.shape[3]))


def forced(step: Step, length: int, closed: int, sink: int, width: int, queries: Tensor) -> Tensor:
    """The first `sink` slots that each query sees, then those from `closed` on, newest first.

    Shapes: -> [B or 1, 1, Tq, w], w at most `width`; -1 last.
    """
    width = min(width, sink + length - closed)
    place = torch.arange(width, device=queries.device)
    start = step.starts(queries.device)[:, None, None]
    stop = step.stops(length, queries.shape[2], queries.device).clamp_max(length)[..., None]
    slots = torch.where(place < sink, start + place, stop - 1 - (place - sink))
    least = torch.where(place < sink, start, (start + sink).clamp_min(closed))
    there = (slots >= least) & (slots < stop)
    return slots.masked_fill(~there, -1)[:, None]


def centroid_scores(queries: Tensor, clusters: Clusters) -> Tensor:
    """Dot products of queries with centroids [B, Hq, Tq, C] float64, -inf for clusters without a key.

    In float64, so that rounded to float32 equal ones are equal in every batch and on every device.
    """
    centroids = clusters.centroids.double().mT
    rows, heads, count, _ = queries.shape
    by_group = queries.double().reshape(rows, centroids.shape[1], -1, queries.shape[3])
    scores = (by_group @ centroids).masked_fill((clusters.sizes == 0)[:, :, None], -torch.inf)
    return scores.view(rows, heads, count, -1)
