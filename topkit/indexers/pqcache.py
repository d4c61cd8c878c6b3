"""PQCache: keys as the nearest centroids of their parts, scored by tables of products."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from topkit.indexers.base import Index, Step
from topkit.indexers.checks import whole
from topkit.indexers.clusters import own_keys_first
from topkit.indexers.fitted import FittedIndex
from topkit.indexers.kmeans import drawn, kmeans, means_of, nearest
from topkit.indexers.scored import Codes, Scored
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits


@dataclass(frozen=True)
class pqcache(Scored):
    """Keeps of each of `m` parts of a key its nearest of 2^b centroids, and adds up products with these.

    Centroids are those of k-means over the keys that each row's head was built on, from keys drawn by the
    seed, by distance, at most `iterations` times; an appended key goes to the nearest ones, which never move. A
    head dimension that m does not divide has zeros behind it. A part takes a byte, whatever b is.
    Source: arXiv 2407.12820, section 3; m = 2 and b = 6 are its defaults.
    """

    m: int = 2
    b: int = 6
    iterations: int = 10

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "arXiv 2407.12820"
    cost: ClassVar[str] = "reads m bytes a key, and 2^b centroids"
    examples: ClassVar[tuple[str, ...]] = ("pqcache(m=3, b=3)", "pqcache()")

    def __post_init__(self) -> None:
        whole(self, "m", 1)
        whole(self, "b", 1, 8)
        whole(self, "iterations", 1)

    def traits(self) -> Traits:
        return Traits(score_all=True, drifts=True)

    def code_bytes(self, shape: Shape) -> float:
        return shape.Hk * self.m

    def costs(self, shape: Shape) -> Cost:
        s, centroids = shape, least(2**self.b, shape.T)
        numbers = s.Hk * self.m * centroids * math.ceil(s.D / self.m)
        products = s.Hq / s.Hk * numbers + s.Hq * s.T * self.m
        cost = super().costs(shape)
        return replace(
            cost,
            index=cost.index + 4 * numbers / s.T,
            read=cost.read + 4 * numbers,
            operations=products,
            build=(2 * self.iterations + 1) * s.T * numbers,
            append=numbers,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        index = _PQIndex(self, centroids=self.codebooks(keys.detach(), step))
        index.append(keys, step)
        return index

    def codebooks(self, keys: Tensor, step: Step) -> Tensor:
        """Centroids [B, Hk, m, C, D / m] float32 of keys [B, Hk, t, D], C at most 2^b."""
        rows, heads, count = keys.shape[:3]
        place = torch.arange(count, device=keys.device).expand(rows, -1)
        start = step.starts(keys.device).expand(rows)
        points = (
            parts_of(own_keys_first(keys, place + start[:, None], 0), self.m) if count else None
        )
        if points is None:
            return keys.new_zeros(rows, heads, self.m, 1, -(-keys.shape[3] // self.m)).float()
        counts = (count - start).clamp_min(0)
        clusters = counts.clamp_max(2**self.b)
        first = drawn(place, counts, clusters, step)
        labels = kmeans(points, counts, first, iterations=self.iterations, by="distance")
        means, sizes = means_of(points, labels, max(first.shape[2], 1))
        # One that lost its keys becomes a copy of the largest, so that it is as good as not there.
        largest = sizes.argmax(-1)[..., None, None].expand(-1, -1, 1, means.shape[3])
        means = means.where((sizes > 0)[..., None], means.gather(2, largest))
        return means.float().unflatten(1, (heads, self.m))

    def encode(self, keys: Tensor, step: Step) -> Codes:
        """Of keys that are numbers of centroids already [B, Hk, t, m]."""
        return {"cells": keys.to(torch.uint8)}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        """Sums of entries of tables [B, Hq, Tq, m * C], which stand for the queries."""
        cells = codes["cells"].expand(len(queries), -1, -1, -1)  # of one row, where rows share them
        (rows, heads, length, m), count = cells.shape, queries.shape[3] // codes["cells"].shape[3]
        tables = queries.unflatten(1, (heads, -1)).flatten(2, 3).mT.flatten(0, 2)
        begin = torch.arange(rows * heads * m, device=cells.device) * count
        at = cells.flatten(0, 1).int() + begin.view(-1, 1, m).int()
        sums = embedding_bag(at.flatten(0, 1), tables.contiguous(), mode="sum")
        return sums.view(rows, heads, length, -1).mT.reshape(*queries.shape[:3], length)


def parts_of(vectors: Tensor, m: int) -> Tensor:
    """Vectors [B, H, n, D] cut into m parts of one width [B, H * m, n, ceil(D / m)], zeros behind them."""
    padded = pad(vectors, (0, -vectors.shape[3] % m))
    return padded.unflatten(3, (m, -1)).movedim(3, 2).flatten(1, 2)


@dataclass
class _PQIndex(FittedIndex):
    """Numbers of centroids [B, Hk, m, C, d]."""

    centroids: Tensor = field(kw_only=True)

    fitted: ClassVar[tuple[str, ...]] = ("centroids",)
    read_by_queries: ClassVar[tuple[str, ...]] = ("centroids",)

    def of_keys(self, keys: Tensor) -> Tensor:
        m = self.centroids.shape[2]
        centroids = self.centroids.flatten(1, 2).double()
        usable = torch.ones(centroids.shape[:3], dtype=torch.bool, device=keys.device)
        cells = nearest(parts_of(keys.detach(), m), centroids, usable, "distance")
        return cells.unflatten(1, (-1, m)).movedim(2, 3)

    def of_queries(self, queries: Tensor) -> Tensor:
        """Tables of products [B, Hq, Tq, m * C]."""
        m, heads = self.centroids.shape[2], queries.shape[1]
        parts = parts_of(queries.float(), m).unflatten(1, (heads, m))
        centroids = self.centroids.repeat_interleave(heads // self.centroids.shape[1], 1)
        return (parts @ centroids.mT).movedim(2, 3).flatten(3)
