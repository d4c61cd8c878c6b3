# pyright: strict
"""FAISS IVF: inverted lists around k-means centroids of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from topkit.errors import InputError
from topkit.grammar import later
from topkit.indexers.checks import flag, whole
from topkit.indexers.faiss_base import FaissIndexer, Vectors
from topkit.indexers.stated_cost import Cost, Shape, least


@dataclass(frozen=True)
class faiss_ivf(FaissIndexer):
    """Scores exactly the keys of the `nprobe` lists whose centroids score best, and no others.

    Centroids are those of the keys that the index was built on: appended keys join the nearest
    list and are never retrained. Fewer than k come back where the probed lists hold fewer.
    Source: FAISS IndexIVFFlat, inner product (arXiv 2401.08281).
    """

    nlist: int = 64
    nprobe: int = 8
    center: bool = later(False)
    hadamard: bool = later(False)

    source: ClassVar[str] = "FAISS, arXiv 2401.08281"
    cost: ClassVar[str] = "reads nlist centroids and the probed lists"
    examples: ClassVar[tuple[str, ...]] = ("faiss_ivf()", "faiss_ivf(center=True, hadamard=True)")

    def __post_init__(self) -> None:
        whole(self, "nlist", 1)
        whole(self, "nprobe", 1)
        flag(self, "center")
        flag(self, "hadamard")
        if self.nprobe > self.nlist:
            raise InputError(
                f"faiss_ivf needs 1 <= nprobe <= nlist; got nlist={self.nlist}, nprobe={self.nprobe}"
            )

    def costs(self, shape: Shape) -> Cost:
        s = shape
        lists = least(self.nlist, s.T)
        keys = s.T * least(self.nprobe, lists) / lists  # of lists of one length
        train = (
            10 * least(s.T, 256 * lists) + s.T
        )  # FAISS's rounds and sample, and where each key belongs
        return Cost(
            index=s.Hk * (4 * s.D + 8) + 4 * s.Hk * lists * s.D / s.T + self.offset_bytes(s),
            read=4 * s.Hq * (lists + keys) * s.D,
            operations=s.Hq * (lists + keys) * s.D,
            build=s.Hk * lists * s.D * train,
            append=s.Hk * lists * s.D,
            lists=s.Hq,
            kept=least(s.kept, keys),
            estimated=True,
        )

    def make(self, faiss: Any, keys: Vectors) -> Any:
        lists = min(self.nlist, len(keys))
        quantizer = faiss.IndexFlatIP(keys.shape[1])
        index = faiss.IndexIVFFlat(quantizer, keys.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        quantizer.this.disown()
        index.own_fields = True
        index.cp.min_points_per_centroid = 1  # short prompts train too, without a warning
        index.nprobe = min(self.nprobe, lists)
        index.train(keys)
        index.add(keys)
        return index

    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        graph.remove_ids(faiss.IDSelectorRange(adds[-1], graph.ntotal))
        return graph

    def size(self, graph: Any) -> int:
        return graph.ntotal * (graph.d * 4 + 8) + self.fixed_bytes(graph)

    def fixed_bytes(self, graph: Any) -> int:
        return graph.nlist * graph.d * 4

    def compared(self, faiss: Any) -> int:
        return faiss.cvar.indexIVF_stats.ndis
