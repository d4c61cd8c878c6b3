# pyright: strict
"""FAISS IVF: inverted lists around k-means centroids of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from topkit.grammar import later
from topkit.indexers.faiss_base import plain
from topkit.indexers.faiss_gpu_lists import GpuLists
from topkit.indexers.faiss_lists import ListsIndexer
from topkit.indexers.faiss_pieces import POINTS, training
from topkit.indexers.stated_cost import Cost, Shape


@dataclass(frozen=True)
class faiss_ivf(ListsIndexer):
    """Scores exactly the keys of the `nprobe` lists whose centroids score best, and no others.

    Centroids are those of the keys that the index was built on: appended keys join the nearest
    list and are never retrained. Fewer than k come back where the probed lists hold fewer.
    device="cuda": keys stay on the GPU, but for a sample of 256 a list that centroids are trained on; at most
    2,048 keys are chosen.
    Source: FAISS IndexIVFFlat, inner product (arXiv 2401.08281).
    """

    nlist: int = 64
    nprobe: int = 8
    center: bool = later(False)
    hadamard: bool = later(False)
    device: str = later("cpu")

    source: ClassVar[str] = "FAISS, arXiv 2401.08281"
    cost: ClassVar[str] = "reads nlist centroids and the probed lists"
    examples: ClassVar[tuple[str, ...]] = ("faiss_ivf()", "faiss_ivf(center=True, hadamard=True)")

    def __post_init__(self) -> None:
        self._require()

    @property
    def apart(self) -> bool:
        return True

    def costs(self, shape: Shape) -> Cost:
        return self.listed(shape, 4 * shape.D)

    def trained(self, faiss: Any, keys: Tensor) -> Any:
        width, metric = keys.shape[1], faiss.METRIC_INNER_PRODUCT
        index = self.over_centroids(
            faiss, keys, lambda quantizer, n: faiss.IndexIVFFlat(quantizer, width, n, metric)
        )
        # On the host FAISS draws the sample itself, as it did in topkit 0.1.
        index.train(training(keys, 1, index.nlist * POINTS) if self.on_gpu else plain(keys))
        return index

    def rounded(self, faiss: Any, graph: Any, keys: Tensor) -> tuple[Tensor, Tensor]:
        return keys, graph.joined(keys)

    def rounded_on_gpu(self, graph: GpuLists, keys: Tensor) -> tuple[Tensor, Tensor]:
        return keys, graph.joined(keys)
