# pyright: strict
"""FAISS HNSW: a navigable graph over the keys."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from topkit.grammar import later
from topkit.indexers.checks import flag, whole
from topkit.indexers.faiss_base import FaissIndexer, Vectors
from topkit.indexers.stated_cost import Cost, Shape, least


@dataclass(frozen=True)
class faiss_hnsw(FaissIndexer):
    """Walks a graph greedily towards the largest inner product, `ef_search` candidates wide.

    A graph cannot forget: truncate builds it anew, in the same adds, since keys that come together
    are linked in another order. Copies (beams, forks) are made on the first append.
    Source: FAISS IndexHNSWFlat, inner product (arXiv 1603.09320, 2401.08281).
    """

    M: int = 16
    ef_construction: int = 40
    ef_search: int = 64
    center: bool = later(False)
    hadamard: bool = later(False)

    source: ClassVar[str] = "FAISS, arXiv 1603.09320"
    cost: ClassVar[str] = "reads the keys that the walk meets"
    examples: ClassVar[tuple[str, ...]] = (
        "faiss_hnsw()",
        "faiss_hnsw(M=2)",
        "faiss_hnsw(center=True, hadamard=True)",
    )

    def __post_init__(self) -> None:
        # FAISS allocates for these numbers before it looks at a key.
        whole(self, "M", 2, 2**10)
        whole(self, "ef_construction", 1, 2**20)
        whole(self, "ef_search", 1, 2**20)
        flag(self, "center")
        flag(self, "hadamard")

    def costs(self, shape: Shape) -> Cost:
        s, M = shape, self.M
        links = 2 * M + M / (M - 1)  # of the lowest level, and of those above it on average
        met = least(self.ef_search * M, s.T)
        add = s.Hk * self.ef_construction * M * s.D
        return Cost(
            index=s.Hk * (4 * s.D + 4 * links + 12) + self.offset_bytes(s),
            read=4 * s.Hq * met * s.D,
            operations=s.Hq * met * s.D,
            build=s.T * add,
            append=add,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def make(self, faiss: Any, keys: Vectors) -> Any:
        index = faiss.IndexHNSWFlat(keys.shape[1], self.M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.ef_construction
        index.hnsw.efSearch = self.ef_search
        index.add(keys)
        return index

    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        keys = graph.reconstruct_n(0, adds[-1])
        anew = self.make(faiss, keys[: adds[0]])
        for a, b in pairwise(adds):
            anew.add(keys[a:b])
        return anew

    def size(self, graph: Any) -> int:
        hnsw = graph.hnsw
        links = hnsw.neighbors.size() * 4 + hnsw.offsets.size() * 8 + hnsw.levels.size() * 4
        return graph.ntotal * graph.d * 4 + links

    def compared(self, faiss: Any) -> int:
        return faiss.cvar.hnsw_stats.ndis
