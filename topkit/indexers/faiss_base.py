# pyright: strict
"""What the FAISS recipes share: one FAISS index per row and KV head, copied only when appended to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError, extras_named
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.mean_key import mean_key
from topkit.indexers.rotation import rotated
from topkit.indexers.stated_cost import Shape
from topkit.indexers.traits import Traits

Vectors = np.ndarray[Any, Any]


def import_faiss() -> Any:
    """The faiss module.

    Raises: InputError when it is not installed, or hidden by a half-removed second distribution.
    """
    with extras_named():
        import faiss
    if not hasattr(faiss, "IndexFlatIP"):
        raise InputError(
            "FAISS is broken: faiss-cpu and faiss-gpu overwrote each other; reinstall one"
        )
    return faiss


@contextmanager
def one_thread(faiss: Any) -> Generator[None]:
    """Let FAISS use one thread, as per-head searches are too small to share out, and then what it used before."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class FaissIndexer(Indexer):
    """A recipe that makes, fills and searches one FAISS index over the keys of one head.

    center takes off the mean of the keys at build, hadamard turns keys and queries by an orthonormal
    rotation: products change by the same for all keys of a query, or not at all.
    """

    # Parameters of each recipe, behind its own.
    center: bool
    hadamard: bool

    family: ClassVar[str] = "ann"
    requires: ClassVar[str] = "faiss"

    def traits(self) -> Traits:
        return Traits(
            exhaustive=False, may_come_short=True, drifts=True, causal_codes=False, host=True
        )

    @abstractmethod
    def make(self, faiss: Any, keys: Vectors) -> Any:
        """A FAISS index of keys [n, D] float32."""

    @abstractmethod
    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        """The index of the first adds[-1] keys; `adds` is how many there were after each add."""

    @abstractmethod
    def size(self, graph: Any) -> int:
        """Bytes that the index holds."""

    @abstractmethod
    def compared(self, faiss: Any) -> int:
        """Distances computed since FAISS was started, from its own counters."""

    def fixed_bytes(self, graph: Any) -> int:
        """Bytes that every search reads besides the keys it compares."""
        return 0

    def offset_bytes(self, shape: Shape) -> float:
        """Bytes a token of the mean key that is taken off, where it is."""
        return 4 * shape.Hk * shape.D / shape.T if self.center else 0

    def build(self, keys: Tensor, step: Step) -> Index:
        index = _Faiss(self, keys.shape[1], mean_key(keys, step) if self.center else None)
        index.append(keys, step)
        return index


class _Faiss(Index):
    """graphs[row][head], None until the row's first real key has come; offset [B, Hk, 1, D] is taken off."""

    def __init__(self, recipe: FaissIndexer, heads: int, offset: Tensor | None) -> None:
        self.recipe, self.faiss, self.offset = recipe, import_faiss(), offset
        self.heads, self.slots = heads, 0
        self.graphs: list[list[Any]] = []
        self.adds: list[list[int]] = []  # a row's keys after each add: a graph depends on them
        self.borrowed: list[bool] = []  # a row whose graphs another index may hold too

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        graphs = {id(g): g for row in self.graphs for g in row if g is not None}
        own = 0 if self.offset is None else self.offset.untyped_storage().nbytes()
        return own + sum(self.recipe.size(graph) for graph in graphs.values())

    def append(self, keys: Tensor, step: Step) -> None:
        if not self.graphs:
            self.graphs = [[None] * self.heads for _ in range(keys.shape[0])]
            self.adds = [[] for _ in self.graphs]
            self.borrowed = [False] * keys.shape[0]
        new = self._array(keys if self.offset is None else keys - self.offset)
        for row, start in enumerate(self._starts(step)):
            # FAISS never sees padding: ids count from the row's first real key.
            real = new[row, :, max(start - self.slots, 0) :]
            if real.shape[1]:
                with one_thread(self.faiss):
                    self._own(row)
                    for head in range(self.heads):
                        self._add(row, head, np.ascontiguousarray(real[head]))
                self.adds[row].append(self.slots + keys.shape[2] - start)
        self.slots += keys.shape[2]

    def _add(self, row: int, head: int, keys: Vectors) -> None:
        graph = self.graphs[row][head]
        if graph is None:
            self.graphs[row][head] = self.recipe.make(self.faiss, keys)
        else:
            graph.add(keys)

    def _own(self, row: int) -> None:
        if self.borrowed[row]:
            copies = [g if g is None else self.faiss.clone_index(g) for g in self.graphs[row]]
            self.graphs[row], self.borrowed[row] = copies, False

    def _starts(self, step: Step) -> list[int]:
        return [int(start) for start in step.starts().expand(len(self.graphs))]

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        if queries.shape[2] != 1 or (
            step.stop is not None and bool((step.stop != self.slots).any())
        ):
            raise InputError(
                "a FAISS index answers the newest position alone: append one key, then select"
            )
        rows, heads = queries.shape[:2]
        k = min(k, self.slots)
        vectors = self._array(queries)
        vectors = vectors.reshape(rows, self.heads, -1, vectors.shape[-1])
        ids = np.full((rows, self.heads, vectors.shape[2], k), -1, dtype=np.int64)
        scored, read = np.zeros((rows, 1)), np.zeros((rows, 1))
        for row, start in enumerate(self._starts(step)):
            before = self.recipe.compared(self.faiss)
            for head, graph in enumerate(self.graphs[row]):
                if graph is not None:
                    ids[row, head] = self._search(graph, vectors[row, head], k, start)
                    read[row] += vectors.shape[2] * self.recipe.fixed_bytes(graph)
            compared = self.recipe.compared(self.faiss) - before
            scored[row] = compared / heads
            read[row] += compared * vectors.shape[-1] * 4
        lists = ids.reshape(rows, heads, 1, k)
        # On the queries' device, costs too: combinators add their own to them.
        here = [torch.as_tensor(x, device=queries.device) for x in (lists, scored, read)]
        return Selection(here[0], keys_scored=here[1], bytes_read=here[2])

    def _search(self, graph: Any, queries: Vectors, k: int, start: int) -> Vectors:
        slots = np.full((len(queries), k), -1, dtype=np.int64)
        n = min(k, graph.ntotal)
        with one_thread(self.faiss):
            _, ids = graph.search(np.ascontiguousarray(queries), n)
        slots[:, :n] = np.where(ids < 0, -1, ids + start)
        return slots

    def truncate(self, length: int, step: Step) -> None:
        for row, start in enumerate(self._starts(step)):
            self._own(row)
            kept = length - start
            if not self.adds[row] or kept >= self.adds[row][-1]:
                continue
            adds = [n for n in self.adds[row] if n < kept] + [kept] * (kept > 0)
            with one_thread(self.faiss):
                for head, graph in enumerate(self.graphs[row]):
                    left = self.recipe.remove(self.faiss, graph, adds) if adds else None
                    self.graphs[row][head] = left
            self.adds[row] = adds
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        gathered = [int(row) for row in rows]
        self.graphs = [list(self.graphs[row]) for row in gathered]
        self.adds = [list(self.adds[row]) for row in gathered]
        self.borrowed = [True] * len(self.graphs)
        self.offset = None if self.offset is None else self.offset[rows.to(self.offset.device)]

    def fork(self) -> Index:
        twin = _Faiss(self.recipe, self.heads, self.offset)
        twin.slots = self.slots
        twin.graphs = [list(row) for row in self.graphs]
        twin.adds = [list(row) for row in self.adds]
        twin.borrowed, self.borrowed = [True] * len(self.graphs), [True] * len(self.graphs)
        return twin

    def _array(self, x: Tensor) -> Vectors:
        """Vectors as FAISS takes them, rotated where the recipe says so."""
        x = rotated(x.detach()) if self.recipe.hadamard else x.detach()
        return x.float().cpu().numpy()
