# pyright: strict
"""FAISS PQ FastScan: keys as 4-bit places in the codebooks of short pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from topkit.indexers.checks import flag, whole
from topkit.indexers.faiss_base import plain
from topkit.indexers.faiss_indexer import FaissIndexer
from topkit.indexers.faiss_pieces import POINTS, in_pieces, training
from topkit.indexers.stated_cost import Cost, Shape


@dataclass(frozen=True)
class faiss_pq(FaissIndexer):
    """Scores every key by tables of what its pieces say, one lookup for every `dims` dimensions.

    A piece is one of 16 centroids of the keys at build (k-means of at most 256 keys a centroid, never
    retrained); a query's tables are rounded to a byte an entry. A width that `dims` does not divide has
    zeros behind it.
    Source: FAISS IndexPQFastScan (product quantisation, IEEE TPAMI 33(1) 2011, section III; the scan, arXiv 1704.07355).
    """

    dims: int = 2
    center: bool = False
    hadamard: bool = False

    family: ClassVar[str] = "codes"
    source: ClassVar[str] = "FAISS, arXiv 1704.07355"
    cost: ClassVar[str] = "reads 4 bits for every dims dimensions of every key"
    examples: ClassVar[tuple[str, ...]] = (
        "faiss_pq()",
        "faiss_pq(dims=5)",
        "faiss_pq(dims=4, center=True, hadamard=True)",
    )

    def __post_init__(self) -> None:
        whole(self, "dims", 1, 2**10)
        flag(self, "center")
        flag(self, "hadamard")

    def turned(self, x: Tensor) -> Tensor:
        return in_pieces(super().turned(x), self.dims)

    def costs(self, shape: Shape) -> Cost:
        pieces = math.ceil(shape.D / self.dims)
        return self.scanned(shape, math.ceil(pieces / 2), 64 * shape.D, 16 * shape.D)

    def make(self, faiss: Any, keys: Tensor) -> Any:
        width = keys.shape[1]
        index = faiss.IndexPQFastScan(width, width // self.dims, 4, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.min_points_per_centroid = 1
        index.train(training(keys, 16, 16 * POINTS))
        index.add(plain(keys))
        return index

    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        # FAISS would leave codes of the keys it forgets, and write those of new ones over them bit by bit.
        kept, anew = graph.reconstruct_n(0, adds[-1]), faiss.clone_index(graph)
        anew.reset()
        anew.add(kept)
        return anew

    def key_bytes(self, graph: Any) -> int:
        return graph.M2 // 2

    def size(self, graph: Any) -> int:
        # Codes stand in blocks of 32 keys; codebooks are in float32.
        return graph.codes.size() + 16 * graph.d * 4
