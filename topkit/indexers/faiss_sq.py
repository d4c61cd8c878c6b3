# pyright: strict, reportUnknownMemberType=false
"""FAISS scalar quantiser: each dimension in a few bits of its range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.grammar import later
from topkit.indexers.checks import flag, one_of
from topkit.indexers.faiss_base import Hits, plain
from topkit.indexers.faiss_gpu import LARGEST, require_device
from topkit.indexers.faiss_gpu_lists import GpuLists
from topkit.indexers.faiss_indexer import FaissIndexer
from topkit.indexers.stated_cost import Cost, Shape

# FAISS's names of the codes, by bits a dimension.
CODES = {4: "QT_4bit", 6: "QT_6bit", 8: "QT_8bit", 16: "QT_fp16"}
# Keys of 6 bits that faiss-gpu chooses at most: shared memory holds no more of them beside their ranges.
FEWER = 512
# Lists that keys stand in on a GPU, all of which are searched.
LISTS = 64


@dataclass(frozen=True)
class faiss_sq(FaissIndexer):
    """Scores every key as rounded to 2^bits steps between the least and the greatest of each dimension.

    The range is that of the keys at build: what is appended beyond it is cut to it. bits=16 are halves.
    device="cuda": keys stay on the GPU, but for 64 of them; at most 2,048 are chosen, of 6 bits 512.
    Source: FAISS IndexScalarQuantizer, QT_4bit, QT_6bit, QT_8bit, QT_fp16 (arXiv 2401.08281, section 4.3).
    """

    bits: int = 8
    center: bool = False
    hadamard: bool = False
    device: str = later("cpu")

    family: ClassVar[str] = "codes"
    source: ClassVar[str] = "FAISS, arXiv 2401.08281"
    cost: ClassVar[str] = "reads bits / 8 bytes a dimension of every key"
    examples: ClassVar[tuple[str, ...]] = (
        "faiss_sq()",
        "faiss_sq(bits=4)",
        "faiss_sq(bits=6, center=True, hadamard=True)",
    )
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"bits": (4, 6, 8, 16)}

    def __post_init__(self) -> None:
        one_of(self, "bits", CODES)
        flag(self, "center")
        flag(self, "hadamard")
        require_device(self)

    @property
    def apart(self) -> bool:
        return True

    def costs(self, shape: Shape) -> Cost:
        return self.scanned(shape, math.ceil(shape.D * self.bits / 8), 8 * shape.D, shape.D)

    def make(self, faiss: Any, keys: Tensor) -> Any:
        kind, width = getattr(faiss.ScalarQuantizer, CODES[self.bits]), keys.shape[1]
        if self.on_gpu:
            return self._on_gpu(faiss, kind, keys)
        index = faiss.IndexScalarQuantizer(width, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(plain(keys))
        index.add(plain(keys))
        return index

    def _on_gpu(self, faiss: Any, kind: int, keys: Tensor) -> GpuLists:
        """faiss-gpu scans lists alone: keys stand in some, around any of them, and all are searched."""
        width, metric = keys.shape[1], faiss.METRIC_INNER_PRODUCT
        some = keys[:: -(-len(keys) // LISTS)]
        quantizer = faiss.IndexFlatIP(width)
        quantizer.add(some.cpu().numpy())
        index = faiss.IndexIVFScalarQuantizer(quantizer, width, len(some), kind, metric, False)
        quantizer.this.disown()
        index.own_fields, index.nprobe, index.is_trained = True, len(some), True
        low, high = keys.amin(0), keys.amax(0)
        steps = torch.stack([low, high - low])
        if self.bits < 16:
            faiss.copy_array_to_vector(steps.flatten().cpu().numpy(), index.sq.trained)
        most = FEWER if self.bits == 6 else LARGEST
        lists = GpuLists.of(self, faiss, index, keys.device, steps, most)
        lists.add(keys)
        return lists

    def search(self, faiss: Any, graph: Any, queries: Tensor, n: int) -> Hits:
        if self.on_gpu:
            return replace(graph.search(queries, n), compared=graph.ntotal, probes=None)
        return super().search(faiss, graph, queries, n)

    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        if self.on_gpu:
            return graph.until(faiss, adds[-1])
        return super().remove(faiss, graph, adds)

    def clone(self, faiss: Any, graph: Any) -> Any:
        return graph.clone(faiss) if self.on_gpu else super().clone(faiss, graph)

    def rounded(self, faiss: Any, graph: Any, keys: Tensor) -> tuple[Tensor, Tensor]:
        if not self.on_gpu:
            return super().rounded(faiss, graph, keys)
        lists = keys.new_zeros(len(keys), dtype=torch.int64)
        if self.bits == 16:
            return keys.half().float(), lists
        (low, span), most = graph.codebook, (1 << self.bits) - 1
        place = torch.where(span > 0, (keys - low) / span, 0).clamp(0, 1)
        return low + ((place * most).floor() + 0.5) / most * span, lists

    def size(self, graph: Any) -> int:
        return graph.ntotal * graph.code_size + self._range_bytes(graph)

    def _range_bytes(self, graph: Any) -> int:
        if self.on_gpu:
            return graph.ntotal * 8 + (graph.nlist + 2) * graph.centroids.shape[1] * 4
        return graph.sq.trained.size() * 4
