# pyright: strict, reportUnknownMemberType=false
"""FAISS's inverted lists as tensors: probed where the queries lie, at steps of fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.combinator import Combinator, best_at
from topkit.indexers.faiss_base import import_faiss
from topkit.indexers.faiss_index import FaissIndex
from topkit.indexers.faiss_ivf import faiss_ivf
from topkit.indexers.scored import cut_each
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.score_keys import score_keys

# A list that no query probes: of slots that hold no key.
NOWHERE = -1


@dataclass(frozen=True)
class Probed(Indexer):
    """Chooses what a `faiss_ivf` chooses, of the lists that FAISS made for it.

    Every key is scored, and those of lists that are not probed are left out: more work than FAISS does, and of
    fixed shapes, so that a CUDA graph can repeat it. Costs are those of FAISS.
    """

    recipe: faiss_ivf

    def traits(self) -> Traits:
        return replace(self.recipe.traits(), fixed=True, host=False)

    def costs(self, shape: Shape) -> Cost:
        return self.recipe.costs(shape)

    def build(self, keys: Tensor, step: Step) -> Index:
        raise InputError(f"{self} takes the lists of an index that FAISS built")


def replayed(indexer: Indexer) -> Indexer:
    """The recipe that chooses as another one at steps of fixed shapes: itself, but over lists of FAISS."""
    if isinstance(indexer, Combinator):
        base = replayed(indexer.base)
        return indexer if base is indexer.base else replace(indexer, base=base)
    if type(indexer) is faiss_ivf and not indexer.on_gpu:
        return Probed(indexer)
    return indexer


@dataclass
class ProbedIndex(Index):
    """The lists of some rows that begin alike, with room for slots to come.

    Shapes: keys [R, Hk, room, D] float32, as FAISS was given them; lists [R, Hk, room], where each stands;
    centroids [R, Hk, n, D]; offset [1, Hk, 1, D], what is subtracted from keys (None: nothing).
    """

    recipe: faiss_ivf
    slots: int
    keys: Tensor
    lists: Tensor
    centroids: Tensor
    offset: Tensor | None

    @classmethod
    def of(
        cls, index: FaissIndex, rows: int, room: int, device: torch.device
    ) -> ProbedIndex | None:
        """The lists of an index of one row; None of an index of another kind."""
        recipe = index.recipe
        if type(recipe) is not faiss_ivf or recipe.on_gpu or index.graphs[0] is None:
            return None
        heads, graph = index.heads, index.graphs[0][0]
        wide = rows, heads, room
        offset = None if index.offset is None else index.offset.to(device).clone()
        return cls(
            recipe,
            index.length,
            torch.zeros(*wide, graph.index.d, device=device),
            torch.full(wide, NOWHERE, device=device),
            torch.zeros(rows, heads, graph.nlist, graph.index.d, device=device),
            offset,
        )

    def refill(self, other: FaissIndex) -> None:
        """Take over the lists of an index of one row, in every row.

        Raises: InputError where it has another number of lists.
        """
        graphs = other.graphs[0]
        count = self.centroids.shape[2]
        if graphs is None or any(graph.nlist != count for graph in graphs):
            raise InputError(f"{self.recipe} has another number of lists than {count} here")
        for head, graph in enumerate(graphs):
            keys, lists = _listed(graph.index)
            self.keys[:, head, : len(keys)] = keys.to(self.keys.device)
            self.lists[:, head, : len(keys)] = lists.to(self.lists.device)
            centroids = torch.from_numpy(graph.index.quantizer.reconstruct_n(0, count))
            self.centroids[:, head] = centroids.to(self.keys.device)
        if self.offset is not None and other.offset is not None:
            self.offset.copy_(other.offset)
        self.slots = other.length

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        own = (self.keys, self.lists, self.centroids, self.offset)
        return sum(x.untyped_storage().nbytes() for x in own if x is not None)

    def append(self, keys: Tensor, step: Step) -> None:
        if step.at is None:
            raise InputError(f"{self.recipe} takes keys here at a place on the device alone")
        keys = keys.detach() if self.offset is None else keys.detach() - self.offset
        keys = self.recipe.turned(keys)
        nearest = (keys @ self.centroids.mT).argmax(-1)
        self.keys.index_copy_(2, step.at, keys)
        self.lists.index_copy_(2, step.at, nearest)

    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates:
        assert step.stop is not None
        rows, heads, groups = len(queries), queries.shape[1], self.keys.shape[1]
        turned = self.recipe.turned(queries.detach())
        by_group = turned.view(rows, groups, heads // groups, -1)
        near = by_group @ self.centroids.mT
        best = near.topk(min(self.recipe.nprobe, near.shape[-1]), dim=-1).indices
        probed = torch.zeros_like(near, dtype=torch.bool).scatter_(-1, best, True)
        lists = self.lists[:, :, None].expand(-1, -1, heads // groups, -1)
        searched = probed.gather(-1, lists.clamp_min(0)).view(rows, heads, 1, -1)
        slots = torch.arange(searched.shape[-1], device=queries.device)
        searched &= slots < step.stop[:, None, :, None]
        scores = score_keys(turned, self.keys, stop=step.stop).masked_fill(~searched, -torch.inf)
        if not step.counted:
            return Candidates(scores)
        compared = searched.sum((1, 3), dtype=torch.float32).view(rows, 1)
        count, width = self.centroids.shape[2:]
        read = compared * 4 * width + heads * count * 4 * width
        return Candidates(scores, keys_scored=compared / heads, bytes_read=read)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return best_at(self.candidates(queries, k, step), k, step)

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        ordered = replace(step, ordered=step.ordered or len(ks) > 1)
        return cut_each(self.select(queries, max(ks), ordered), ks)

    def truncate(self, length: int, step: Step) -> None:
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        self.keys, self.lists = self.keys[rows], self.lists[rows]
        self.centroids = self.centroids[rows]


def _listed(index: Any) -> tuple[Tensor, Tensor]:
    """The keys [n, D] of a FAISS index in the order of their ids, and the list of each [n]."""
    faiss, inverted = import_faiss(), index.invlists
    keys = np.empty((index.ntotal, index.d), dtype=np.float32)
    lists = np.empty(index.ntotal, dtype=np.int64)
    for number in range(index.nlist):
        size = cast(int, inverted.list_size(number))
        if size:
            ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
            codes = faiss.rev_swig_ptr(inverted.get_codes(number), size * index.code_size)
            keys[ids] = codes.view(np.float32).reshape(size, index.d)
            lists[ids] = number
    return torch.from_numpy(keys), torch.from_numpy(lists)
