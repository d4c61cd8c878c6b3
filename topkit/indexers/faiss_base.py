# pyright: strict
"""What the FAISS recipes share: one FAISS index per row and KV head, copied only when appended to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError, extras_named
from topkit.indexers.base import Index, Indexer, Selection, Step
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


@dataclass(frozen=True)
class FaissIndexer(Indexer):
    """A recipe that makes, fills and searches one FAISS index over the keys of one head."""

    family: ClassVar[str] = "ann"
    requires: ClassVar[str] = "faiss"

    def traits(self) -> Traits:
        return Traits(exhaustive=False, may_come_short=True, drifts=True, causal_codes=False)

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

    def build(self, keys: Tensor, step: Step) -> Index:
        index = _Faiss(self, keys.shape[1])
        index.append(keys, step)
        return index


class _Faiss(Index):
    """graphs[row][head], None until the row's first real key has come."""

    def __init__(self, recipe: FaissIndexer, heads: int) -> None:
        self.recipe, self.faiss = recipe, import_faiss()
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
        return sum(self.recipe.size(graph) for graph in graphs.values())

    def append(self, keys: Tensor, step: Step) -> None:
        if not self.graphs:
            self.graphs = [[None] * self.heads for _ in range(keys.shape[0])]
            self.adds = [[] for _ in self.graphs]
            self.borrowed = [False] * keys.shape[0]
        new = _array(keys)
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
        vectors = _array(queries).reshape(rows, self.heads, -1, queries.shape[-1])
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
            read[row] += compared * queries.shape[-1] * 4
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

    def fork(self) -> Index:
        twin = _Faiss(self.recipe, self.heads)
        twin.slots = self.slots
        twin.graphs = [list(row) for row in self.graphs]
        twin.adds = [list(row) for row in self.adds]
        twin.borrowed, self.borrowed = [True] * len(self.graphs), [True] * len(self.graphs)
        return twin


def _array(x: Tensor) -> Vectors:
    return x.detach().float().cpu().numpy()
