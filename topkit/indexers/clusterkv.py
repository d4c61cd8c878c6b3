# pyright: strict
"""ClusterKV: clusters of keys that point the same way, recalled whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.checks import whole
from topkit.indexers.clustered import Clustered, ClusteredIndex
from topkit.indexers.clusters import centroid_scores
from topkit.indexers.kmeans import drawn, kmeans


@dataclass(frozen=True)
class clusterkv(Clustered):
    """Keeps the clusters whose centroids have the largest dot products, each query head its own.

    One cluster for every `per_cluster` keys (at least one): k-means by cosine from keys drawn by the seed,
    centroids the means of their keys. The first `sink` keys are in no cluster. Appended keys wait, all of them
    kept, until there are `update` (0: for good), which are then clustered among themselves. k counts sinks and
    what waits too, which the paper does not; the last cluster that k reaches is cut to its earliest keys.
    Source: arXiv 2412.03213, section III.
    """

    per_cluster: int = 80
    sink: int = 16
    update: int = 320
    iterations: int = 20

    source: ClassVar[str] = "arXiv 2412.03213"
    cost: ClassVar[str] = "reads 1 centroid for per_cluster keys, and the members of the best"
    examples: ClassVar[tuple[str, ...]] = (
        "clusterkv(per_cluster=4, sink=2, update=8)",
        "clusterkv()",
        "clusterkv(per_cluster=3, sink=0, update=0)",
    )

    window = 0

    def __post_init__(self) -> None:
        self.check()
        whole(self, "per_cluster", 1)
        whole(self, "iterations", 1)

    def cluster(
        self, keys: Tensor, positions: Tensor, counts: Tensor, step: Step
    ) -> tuple[Tensor, int]:
        clusters = (counts // self.per_cluster).clamp_min(1).minimum(counts)
        first = drawn(positions, counts, clusters, step)
        how = {"iterations": self.iterations}
        return kmeans(keys, counts, first, **how, cosine=True), first.shape[2]

    def score(self, queries: Tensor, index: ClusteredIndex, step: Step) -> Tensor:
        return centroid_scores(queries, index.clusters).float()
