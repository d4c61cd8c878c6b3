# pyright: strict
"""FAISS IVF-PQ: inverted lists of keys whose rests are product-quantised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.grammar import later, short
from topkit.indexers.checks import one_of, whole
from topkit.indexers.faiss_gpu_lists import GpuLists
from topkit.indexers.faiss_lists import ListsIndexer
from topkit.indexers.faiss_pieces import POINTS, in_pieces, training
from topkit.indexers.stated_cost import Cost, Shape

# Keys that codebooks are trained on: a sample, for 256 entries of many keys take minutes.
CODED = 1 << 12
# Pieces of a key that faiss-gpu has kernels for.
GPU_PIECES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)


@dataclass(frozen=True)
class faiss_ivfpq(ListsIndexer):
    """Scores the keys of `nprobe` lists by a list's centroid and codes of what is left of the key.

    What is left is cut into pieces of `dims` dimensions, each one of 2^bits centroids; lists and pieces are
    trained on a sample of the keys at build. A width that `dims` does not divide has zeros behind it.
    device="cuda": keys stay on the GPU, but for that sample; bits=8, and at most 2,048 keys are chosen.
    Source: FAISS IndexIVFPQ, by residual, inner product (IEEE TPAMI 33(1) 2011, section IV; arXiv 2401.08281).
    """

    nlist: int = 64
    nprobe: int = 8
    dims: int = 4
    bits: int = 8
    center: bool = False
    hadamard: bool = False
    device: str = later("cpu")

    source: ClassVar[str] = "FAISS, arXiv 2401.08281"
    cost: ClassVar[str] = "reads nlist centroids and the codes of the probed lists"
    examples: ClassVar[tuple[str, ...]] = (
        "faiss_ivfpq()",
        "faiss_ivfpq(nlist=8, nprobe=3, dims=3, bits=4, center=True, hadamard=True)",
    )

    def __post_init__(self) -> None:
        self._require()
        whole(self, "dims", 1, 2**10)
        one_of(self, "bits", (8,) if self.device == "cuda" else (4, 5, 6, 7, 8))

    @property
    def apart(self) -> bool:
        # In the host's memory codes are copied: which of equal scores FAISS keeps depends on all of them.
        return self.on_gpu

    def turned(self, x: Tensor) -> Tensor:
        return in_pieces(super().turned(x), self.dims)

    def costs(self, shape: Shape) -> Cost:
        pieces = math.ceil(shape.D / self.dims)
        return self.listed(shape, math.ceil(pieces * self.bits / 8), 4 * 2**self.bits * shape.D)

    def trained(self, faiss: Any, keys: Tensor) -> Any:
        width, entries, metric = keys.shape[1], 1 << self.bits, faiss.METRIC_INNER_PRODUCT
        pieces = width // self.dims
        if self.on_gpu and pieces not in GPU_PIECES:
            known = ", ".join(map(str, GPU_PIECES))
            raise InputError(
                f"{short(self)}: faiss-gpu takes {known} pieces of a key; got {pieces}, of {width} dimensions"
            )
        index = self.over_centroids(
            faiss,
            keys,
            lambda quantizer, n: faiss.IndexIVFPQ(quantizer, width, n, pieces, self.bits, metric),
        )
        index.pq.cp.min_points_per_centroid = 1
        index.pq.cp.max_points_per_centroid = CODED // entries
        index.train(training(keys, entries, max(CODED, index.nlist * POINTS)))
        return index

    def codebook(self, faiss: Any, trained: Any) -> Tensor:
        """[pieces, entries, dims]."""
        numbers = torch.from_numpy(faiss.vector_to_array(trained.pq.centroids))
        return numbers.view(trained.pq.M, trained.pq.ksub, trained.pq.dsub)

    def rounded_on_gpu(self, graph: GpuLists, keys: Tensor) -> tuple[Tensor, Tensor]:
        books, lists = graph.codebook, graph.joined(keys)
        assert books is not None
        about = graph.centroids[lists]
        left = (keys - about).unflatten(1, books.shape[::2]).transpose(0, 1)
        codes = (books.square().sum(-1)[:, None] - 2 * left @ books.mT).argmin(-1)
        nearest = books.gather(1, codes[..., None].expand(-1, -1, books.shape[2]))
        return about + nearest.transpose(0, 1).flatten(1), lists

    def size(self, graph: Any) -> int:
        return super().size(graph) + (1 << self.bits) * graph.index.d * 4
