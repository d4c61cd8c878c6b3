# pyright: strict, reportUnknownMemberType=false
"""Inverted lists of FAISS, whose sizes give how many keys a search compared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Indexer
from topkit.indexers.checks import flag, whole
from topkit.indexers.faiss_base import Hits, Vectors, plain
from topkit.indexers.faiss_gpu import require_device
from topkit.indexers.faiss_gpu_lists import GpuLists
from topkit.indexers.faiss_indexer import FaissIndexer
from topkit.indexers.stated_cost import Cost, Shape, least


@dataclass
class Lists:
    """A FAISS index of inverted lists, and how many keys each has [nlist]."""

    index: Any
    sizes: Vectors

    @property
    def ntotal(self) -> int:
        return self.index.ntotal

    @property
    def nlist(self) -> int:
        return self.index.nlist

    @property
    def code_size(self) -> int:
        return self.index.code_size

    def add(self, keys: Tensor) -> None:
        joined = self.joined(keys).numpy()
        self.index.add(plain(keys))
        self.sizes = self.sizes + np.bincount(joined, minlength=self.nlist)

    def joined(self, keys: Tensor) -> Tensor:
        """The list that each of keys [n, D] joins [n]."""
        _, lists = self.index.quantizer.search(plain(keys), 1)
        return torch.from_numpy(lists[:, 0])

    def search(self, faiss: Any, queries: Tensor, n: int, nprobe: int) -> Hits:
        """The best n keys of the lists whose centroids score best."""
        vectors, nprobe = plain(queries), min(nprobe, self.nlist)
        scores, lists = self.index.quantizer.search(vectors, nprobe)
        best = np.empty((len(vectors), n), dtype=np.float32)
        ids = np.empty_like(best, dtype=np.int64)
        given = map(faiss.swig_ptr, (lists, scores, best, ids))
        # Said here, and not by the index: it may serve recipes that probe more, or fewer. FAISS's method for arrays takes none.
        probes = faiss.SearchParametersIVF(nprobe=nprobe)
        self.index.search_preassigned_c(
            len(vectors), faiss.swig_ptr(vectors), n, *given, False, probes
        )
        return Hits.of(best, ids, self.sizes[lists].sum(1), lists)

    def until(self, faiss: Any, length: int) -> Lists:
        """The first keys alone, in place."""
        self.index.remove_ids(faiss.IDSelectorRange(length, self.ntotal))
        self.sizes = sizes_of(self.index)
        return self

    def clone(self, faiss: Any) -> Lists:
        return Lists(faiss.clone_index(self.index), self.sizes)


def sizes_of(index: Any) -> Vectors:
    """How many keys each list of an index in the host's memory has."""
    fixed = (index.get_list_size(n) for n in range(index.nlist))
    return np.fromiter(fixed, dtype=np.int64, count=index.nlist)


class ListsIndexer(FaissIndexer):
    """A recipe over inverted lists, of the host or of a GPU."""

    nlist: int
    nprobe: int

    def builds_as(self) -> Indexer:
        # An index on a GPU has its own nprobe.
        return self if self.on_gpu else cast(Any, replace)(self, nprobe=1)

    @abstractmethod
    def trained(self, faiss: Any, keys: Tensor) -> Any:
        """A FAISS index in the host's memory, trained on keys [n, D], without any."""

    @abstractmethod
    def rounded_on_gpu(self, graph: GpuLists, keys: Tensor) -> tuple[Tensor, Tensor]:
        """`rounded` on a GPU."""

    def codebook(self, faiss: Any, trained: Any) -> Tensor | None:
        """What `rounded_on_gpu` reads of what was trained, beside the centroids."""
        return None

    def _require(self) -> None:
        whole(self, "nlist", 1)
        whole(self, "nprobe", 1)
        if self.nprobe > self.nlist:
            raise InputError(
                f"{type(self).__name__} needs 1 <= nprobe <= nlist; "
                f"got nlist={self.nlist}, nprobe={self.nprobe}"
            )
        flag(self, "center")
        flag(self, "hadamard")
        require_device(self)

    def listed(self, shape: Shape, key: float, fixed: float = 0) -> Cost:
        """The cost of lists of one length, of keys of `key` bytes; fixed: bytes of one head besides."""
        s = shape
        lists = least(self.nlist, s.T)
        keys = s.T * least(self.nprobe, lists) / lists
        # FAISS's rounds over its sample, and where each key belongs.
        train = 10 * least(s.T, 256 * lists) + s.T
        return Cost(
            index=s.Hk * (key + 8 + (fixed + 4 * lists * s.D) / s.T) + self.offset_bytes(s),
            read=s.Hq * (4 * lists * s.D + keys * key),
            operations=s.Hq * (lists + keys) * s.D,
            build=s.Hk * lists * s.D * train,
            append=s.Hk * lists * s.D,
            lists=s.Hq,
            kept=least(s.kept, keys),
            estimated=True,
        )

    def over_centroids(self, faiss: Any, keys: Tensor, make: Callable[[Any, int], Any]) -> Any:
        """What `make` gives of a quantizer and its number of lists, which belongs to it then."""
        quantizer = faiss.IndexFlatIP(keys.shape[1])
        index = make(quantizer, min(self.nlist, len(keys)))
        quantizer.this.disown()
        index.own_fields = True
        index.cp.min_points_per_centroid = 1  # short prompts train too, without a warning
        index.nprobe = min(self.nprobe, index.nlist)
        return index

    def make(self, faiss: Any, keys: Tensor) -> Any:
        index = self.trained(faiss, keys)
        if self.on_gpu:
            lists = GpuLists.of(self, faiss, index, keys.device, self.codebook(faiss, index))
        else:
            lists = Lists(index, np.zeros(index.nlist, dtype=np.int64))
        lists.add(keys)
        return lists

    def add(self, faiss: Any, graph: Lists | GpuLists, keys: Tensor) -> None:
        graph.add(keys)

    def search(self, faiss: Any, graph: Lists | GpuLists, queries: Tensor, n: int) -> Hits:
        if isinstance(graph, Lists):
            return graph.search(faiss, queries, n, self.nprobe)
        return graph.search(queries, n)

    def remove(self, faiss: Any, graph: Lists | GpuLists, adds: list[int]) -> Any:
        return graph.until(faiss, adds[-1])

    def clone(self, faiss: Any, graph: Lists | GpuLists) -> Any:
        return graph.clone(faiss)

    def rounded(self, faiss: Any, graph: Any, keys: Tensor) -> tuple[Tensor, Tensor]:
        if self.on_gpu:
            return self.rounded_on_gpu(graph, keys)
        codes = graph.index.sa_encode(plain(keys))
        return torch.from_numpy(graph.index.sa_decode(codes)), graph.joined(keys)

    def key_bytes(self, graph: Lists | GpuLists) -> int:
        return graph.code_size

    def fixed_bytes(self, graph: Any) -> int:
        return graph.nlist * graph.index.d * 4

    def reach(self, graph: Lists | GpuLists) -> float:
        return graph.nlist + graph.ntotal * self.nprobe / self.nlist

    def size(self, graph: Any) -> int:
        return graph.ntotal * (graph.code_size + 8) + self.fixed_bytes(graph)
