# pyright: strict, reportUnknownMemberType=false
"""FAISS HNSW: a navigable graph over the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from topkit.grammar import later
from topkit.indexers.base import Indexer
from topkit.indexers.checks import choice, flag, whole
from topkit.indexers.faiss_base import Hits, Vectors, plain
from topkit.indexers.faiss_indexer import FaissIndexer
from topkit.indexers.graph_time import require_minutes, seconds
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits

# The squared length of all augmented keys, in those of the longest at build: room for longer ones to come.
ROOM = 2.0


@dataclass(frozen=True)
class faiss_hnsw(FaissIndexer):
    """Walks a graph greedily towards the largest inner product, `ef_search` candidates wide.

    metric="l2": keys have one dimension more, (k, sqrt(c - |k|^2)) with c twice the largest |k|^2 at build,
    and queries (q, 0), so that the nearest key is that of the largest product; a longer key that is appended
    counts as |k|^2 - c further away. metric="ip" links keys by their products, as topkit 0.1 did: what all
    keys have in common then hides them.
    A graph cannot forget: truncate builds it anew, in the same adds, since keys that come together
    are linked in another order. Copies (beams, forks) are made on the first append. What would take longer than
    `minutes` to link is refused with the estimate.
    Source: FAISS IndexHNSWFlat (arXiv 1603.09320, 2401.08281); products as distances, arXiv 1410.5518, section 3.
    """

    M: int = 16
    ef_construction: int = 40
    ef_search: int = 64
    center: bool = later(False)
    hadamard: bool = later(False)
    metric: str = later("l2")
    minutes: int = later(1)

    source: ClassVar[str] = "FAISS, arXiv 1603.09320"
    cost: ClassVar[str] = "reads the keys that the walk meets"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"ef_search": range(1, 1025)}
    examples: ClassVar[tuple[str, ...]] = (
        "faiss_hnsw()",
        "faiss_hnsw(M=2)",
        "faiss_hnsw(center=True, hadamard=True, metric='ip')",
    )

    def __post_init__(self) -> None:
        # FAISS allocates for these numbers before it looks at a key.
        whole(self, "M", 2, 2**10)
        whole(self, "ef_construction", 1, 2**20)
        whole(self, "ef_search", 1, 2**20)
        flag(self, "center")
        flag(self, "hadamard")
        choice(self, "metric", ("l2", "ip"))
        whole(self, "minutes", 1)

    def builds_as(self) -> Indexer:
        return replace(self, ef_search=1)

    def traits(self) -> Traits:
        return replace(super().traits(), causal_codes=False)

    def costs(self, shape: Shape) -> Cost:
        s, M = shape, self.M
        width = s.D + (self.metric == "l2")
        links = 2 * M + M / (M - 1)  # of the lowest level, and of those above it on average
        met = least(self.ef_search * M, s.T)
        add = s.Hk * self.ef_construction * M * width
        return Cost(
            index=s.Hk * (4 * width + 4 * links + 12) + self.offset_bytes(s),
            read=4 * s.Hq * met * width,
            operations=s.Hq * met * width,
            build=s.T * add,
            append=add,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def foresee(self, keys: int, length: int, width: int, rows: int, heads: int) -> None:
        took = heads * seconds(keys, length, width, self.M, self.ef_construction)
        what = f"{keys:,} keys of {heads} heads"
        require_minutes(self, took, rows * heads, self.minutes, what)

    def make(self, faiss: Any, keys: Tensor) -> Any:
        index = self._empty(faiss, keys.shape[1] + (self.metric == "l2"))
        if self.metric == "l2":
            index.metric_arg = ROOM * float(np.square(plain(keys)).sum(1).max())
        self.add(faiss, index, keys)
        return index

    def _empty(self, faiss: Any, width: int) -> Any:
        metric = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexHNSWFlat(width, self.M, metric)
        index.hnsw.efConstruction = self.ef_construction
        return index

    def add(self, faiss: Any, graph: Any, keys: Tensor) -> None:
        vectors = plain(keys)
        if self.metric == "l2":
            left = np.maximum(graph.metric_arg - np.square(vectors).sum(1), 0)
            vectors = _beside(vectors, np.sqrt(left))
        graph.add(vectors)

    def search(self, faiss: Any, graph: Any, queries: Tensor, n: int) -> Hits:
        vectors = plain(queries)
        if self.metric == "l2":
            vectors = _beside(vectors, 0)
        # The walk is the same for every n: FAISS ends it by ef_search alone.
        walk = faiss.SearchParametersHNSW(efSearch=self.ef_search)
        scores, ids = graph.search(vectors, n, params=walk)
        return Hits.of(-scores if self.metric == "l2" else scores, ids, 0)

    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        keys = graph.reconstruct_n(0, adds[-1])
        anew = self._empty(faiss, graph.d)
        anew.metric_arg = graph.metric_arg
        for a, b in pairwise((0, *adds)):
            anew.add(keys[a:b])
        return anew

    def size(self, graph: Any) -> int:
        hnsw = graph.hnsw
        links = hnsw.neighbors.size() * 4 + hnsw.offsets.size() * 8 + hnsw.levels.size() * 4
        return graph.ntotal * graph.d * 4 + links

    def key_bytes(self, graph: Any) -> int:
        return graph.d * 4

    def reach(self, graph: Any) -> float:
        return min(graph.ntotal, 2 * self.M * self.ef_search)

    @property
    def placing(self) -> float:
        return (
            8 * self.ef_construction * self.M
        )  # keys that lie apart are read at an eighth of the speed

    def counter(self, faiss: Any) -> float | None:
        return faiss.cvar.hnsw_stats.ndis


def _beside(vectors: Vectors, last: Vectors | float) -> Vectors:
    """Vectors [n, D] with one more dimension."""
    wide = np.empty((len(vectors), vectors.shape[1] + 1), dtype=np.float32)
    wide[:, :-1], wide[:, -1] = vectors, last
    return wide
