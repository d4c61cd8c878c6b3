# pyright: strict, reportUnknownMemberType=false
"""Inverted lists of faiss-gpu: filled and searched from torch's memory, on its stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Indexer
from topkit.indexers.faiss_base import Hits
from topkit.indexers.faiss_gpu import ALONE, LARGEST, floats, longs, require_few, resources


@dataclass(frozen=True)
class GpuLists:
    """A FAISS index on a GPU, which holds what it was built on and nothing else, and gives at most `most` keys.

    Shapes: centroids [nlist, D]; sizes [nlist], how many keys each list has; codebook, the recipe's own.
    """

    recipe: Indexer
    index: Any
    code_size: int
    centroids: Tensor
    sizes: Tensor
    codebook: Tensor | None
    most: int = LARGEST

    @classmethod
    def of(
        cls,
        recipe: Indexer,
        faiss: Any,
        trained: Any,
        device: torch.device,
        codebook: Tensor | None,
        most: int = LARGEST,
    ) -> GpuLists:
        """What is trained in the host's memory, with the keys that it has."""
        sizes = [trained.get_list_size(n) for n in range(trained.nlist)]
        return cls(
            recipe,
            _on_gpu(faiss, trained, device),
            trained.code_size,
            torch.from_numpy(trained.quantizer.reconstruct_n(0, trained.nlist)).to(device),
            torch.tensor(sizes, device=device),
            None if codebook is None else codebook.to(device),
            most,
        )

    @property
    def ntotal(self) -> int:
        return self.index.ntotal

    @property
    def nlist(self) -> int:
        return self.index.nlist

    def add(self, keys: Tensor) -> None:
        keys = keys.contiguous()
        self.sizes.add_(torch.bincount(self.joined(keys), minlength=self.nlist))
        with ALONE:
            resources(keys.device)
            self.index.add_c(len(keys), floats(keys))

    def joined(self, keys: Tensor) -> Tensor:
        """The list that each of keys [n, D] joins [n]."""
        return (keys @ self.centroids.mT).argmax(1)

    def search(self, queries: Tensor, n: int) -> Hits:
        """The best n keys of the lists whose centroids score best; of equal scores any, as FAISS finds them."""
        require_few(self.recipe, n, self.most)
        queries = queries.contiguous()
        near, lists = (queries @ self.centroids.mT).topk(self.index.nprobe, 1)
        scores = queries.new_empty(len(queries), n)
        ids = torch.empty_like(scores, dtype=torch.int64)
        arguments = (len(queries), floats(queries), n, longs(lists), floats(near))
        with ALONE:
            resources(queries.device)
            self.index.search_preassigned_c(*arguments, floats(scores), longs(ids), False)
        return Hits(scores, ids, self.sizes[lists].sum(1), lists)

    def until(self, faiss: Any, length: int) -> GpuLists:
        """An index of the first keys alone, cut on the host: faiss-gpu cannot remove keys."""
        with ALONE:
            kept = faiss.index_gpu_to_cpu(self.index)
        kept.remove_ids(faiss.IDSelectorRange(length, kept.ntotal))
        sizes = [kept.get_list_size(n) for n in range(kept.nlist)]
        index = _on_gpu(faiss, kept, self.centroids.device)
        return replace(self, index=index, sizes=self.sizes.new_tensor(sizes))

    def clone(self, faiss: Any) -> GpuLists:
        return self  # never written to after it was built


def _on_gpu(faiss: Any, index: Any, device: torch.device) -> Any:
    """A copy of an index, of lists in the host's memory, on a GPU."""
    name = f"Gpu{type(index).__name__}"
    config = getattr(faiss, f"{name}Config")()
    config.device = device.index
    if hasattr(config, "useFloat16LookupTables"):
        # FAISS has tables of so many pieces in half precision alone.
        config.useFloat16LookupTables = index.pq.M > 48
    quantizer = faiss.ScalarQuantizer
    if hasattr(index, "sq") and index.sq.qtype in (quantizer.QT_8bit, quantizer.QT_4bit):
        # Beside their ranges, its faster layout has no room in shared memory for 2,048 keys.
        config.interleavedLayout = False
    with ALONE:
        copied = getattr(faiss, name)(resources(device), index, config)
    copied.nprobe = index.nprobe
    return copied
