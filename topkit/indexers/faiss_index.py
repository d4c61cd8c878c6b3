# pyright: strict
"""The state of a FAISS recipe: an index for each row and KV head, which forks and rows share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.faiss_base import FaissRecipe, Hits, import_faiss
from topkit.indexers.faiss_best import Best
from topkit.indexers.faiss_gpu import placed
from topkit.indexers.faiss_tail import Tail
from topkit.indexers.faiss_threads import each

# About how many keys one is compared with when it is put into its place.
PLACING = 64
# Held while FAISS's own counter tells what one row's searches compared.
COUNTING = Lock()
# A FAISS index for each KV head of a row.
Graphs = tuple[Any, ...]


@dataclass(frozen=True)
class Alike:
    """Rows that share their graphs."""

    graphs: Graphs
    rows: list[int]

    def place(self, count: int) -> Any:
        """The rows as an index of so many."""
        return slice(None) if len(self.rows) == count else self.rows


class FaissIndex(Index):
    """graphs[row], None until the row's first real key has come; offset [B, Hk, 1, D] is taken off.

    A graph is appended to, or copied before where another stream has it too; keys of a recipe that is
    `apart` stand behind such a one in the `tail` instead.
    """

    def __init__(self, recipe: FaissRecipe, heads: int, offset: Tensor | None) -> None:
        device = "cuda" if recipe.on_gpu else "cpu"
        self.recipe, self.faiss, self.offset = recipe, import_faiss(device), offset
        self.heads, self.slots = heads, 0
        self.graphs: list[Graphs | None] = []
        self.adds: list[
            list[int]
        ] = []  # the length after each add to a row's graphs, which depend on them
        self.borrowed: list[bool] = []  # a row whose graphs another index may have too
        self.tail: Tail | None = None

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        graphs = {id(g): g for row in self.graphs for g in row or ()}
        own = 0 if self.offset is None else self.offset.untyped_storage().nbytes()
        own += 0 if self.tail is None else self.tail.nbytes
        return own + sum(self.recipe.size(graph) for graph in graphs.values())

    def append(self, keys: Tensor, step: Step) -> None:
        if not self.graphs:
            self.graphs = [None] * keys.shape[0]
            self.adds, self.borrowed = [[] for _ in self.graphs], [False] * keys.shape[0]
        new, stop = self._vectors(keys, self.offset), self.slots + keys.shape[2]
        apart = [
            row for row, graphs in enumerate(self.graphs) if graphs and self._stands_apart(row)
        ]
        if apart or self.tail is not None:
            self._add_behind(new, apart)
        starts = [0] * len(new) if len(apart) == len(new) else self._starts(step)
        for row in set(range(len(new))).difference(apart):
            # FAISS never sees padding: ids count from the row's first real key.
            real = new[row, :, max(starts[row] - self.slots, 0) :]
            if real.shape[1]:
                self._add(row, real)
                self.adds[row].append(stop)
        self.slots = stop

    def _stands_apart(self, row: int) -> bool:
        # An index on a GPU cannot forget: it holds what it was built on, and nothing else.
        return self.recipe.apart and (self.borrowed[row] or self.recipe.on_gpu)

    def _add(self, row: int, keys: Tensor) -> None:
        self._own(row)
        graphs = self.graphs[row]

        def add(head: int) -> Any:
            if graphs is None:
                return self.recipe.make(self.faiss, keys[head])
            self.recipe.add(self.faiss, graphs[head], keys[head])
            return graphs[head]

        work = 0 if self.recipe.on_gpu else keys.numel() * PLACING
        self.graphs[row] = tuple(each(self.faiss, add, range(self.heads), work))

    def _add_behind(self, new: Tensor, rows: Sequence[int]) -> None:
        """Let keys [B, Hk, t, D] stand behind the graphs of some rows; those of the others have theirs."""
        keys, lists = new.clone(), new.new_full((*new.shape[:3], 1), -1, dtype=torch.int64)
        for alike in self._alike(rows):
            place = alike.place(len(new))
            for head, graph in enumerate(alike.graphs):
                own = new[place, head]
                at, standing = self.recipe.rounded(self.faiss, graph, own.flatten(0, 1))
                keys[place, head] = at.view_as(own)
                lists[place, head, :, 0] = standing.view(own.shape[:2])
        if self.tail is None:
            self.tail = Tail(self.slots, keys, lists)
        else:
            self.tail.append(keys, lists)

    def _own(self, row: int) -> None:
        graphs = self.graphs[row]
        if graphs is not None and self.borrowed[row]:
            self.graphs[row] = tuple(self.recipe.clone(self.faiss, g) for g in graphs)
        self.borrowed[row] = False

    def _alike(self, rows: Sequence[int]) -> list[Alike]:
        groups: dict[int, Alike] = {}
        for row in rows:
            graphs = self.graphs[row]
            if graphs is not None:
                groups.setdefault(id(graphs), Alike(graphs, [])).rows.append(row)
        return list(groups.values())

    def _starts(self, step: Step) -> list[int]:
        return step.starts().expand(len(self.graphs)).tolist()

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        self._require_newest(queries, step)
        rows, heads = queries.shape[:2]
        vectors = self._vectors(queries).view(rows, self.heads, heads // self.heads, -1)
        k = min(k, self.slots)
        slots: Tensor | None = None
        compared, read = vectors.new_zeros(2, rows, 1, dtype=torch.float64)
        for alike, hits in self._searched(vectors, k):
            place, graph = alike.place(rows), alike.graphs[0]
            start = (
                None if step.start is None else step.start.to(vectors.device).expand(rows)[place]
            )
            tail = None if self.tail is None else self.tail.at(place)
            best = Best.of(vectors[place], hits, k, start, tail)
            if len(best.slots) == rows and best.slots.shape[-1] == k:
                slots = best.slots
            else:
                slots = unfilled(vectors, k) if slots is None else slots
                slots[place, ..., : best.slots.shape[-1]] = best.slots
            compared[place, 0] = best.compared
            fixed = self.recipe.fixed_bytes(graph) * heads
            read[place, 0] = best.compared * self.recipe.key_bytes(graph) + fixed
        slots = unfilled(vectors, k) if slots is None else slots
        lists = slots.reshape(rows, heads, 1, k)
        # On the queries' device, costs too: combinators add their own to them.
        here = [x.to(queries.device) for x in (lists, compared / heads, read)]
        return Selection(here[0], keys_scored=here[1], bytes_read=here[2])

    def _searched(self, vectors: Tensor, k: int) -> Iterator[tuple[Alike, list[Hits]]]:
        """What the graphs of each head say, once for all rows that share them."""
        if self.recipe.counter(self.faiss) is None:
            yield from self._search(self._alike(range(len(vectors))), vectors, k)
            return
        for row in range(len(vectors)):
            with COUNTING:
                before = self.recipe.counter(self.faiss) or 0
                done = self._search(self._alike([row]), vectors, k)
                compared = (self.recipe.counter(self.faiss) or 0) - before
            each_query = compared / (vectors.shape[1] * vectors.shape[2])
            for alike, hits in done:
                yield alike, [replace(one, compared=each_query) for one in hits]

    def _search(
        self, groups: Sequence[Alike], vectors: Tensor, k: int
    ) -> list[tuple[Alike, list[Hits]]]:
        jobs = [(alike, head) for alike in groups for head in range(self.heads)]

        def search(job: tuple[Alike, int]) -> Hits:
            alike, head = job
            asked = vectors[alike.place(len(vectors)), head].flatten(0, 1)
            graph = alike.graphs[head]
            return self.recipe.search(self.faiss, graph, asked, min(k, graph.ntotal))

        reach = max((self.recipe.reach(alike.graphs[0]) for alike in groups), default=0)
        done = each(self.faiss, search, jobs, 0 if vectors.is_cuda else vectors.numel() * reach)
        return [
            (alike, done[n * self.heads : (n + 1) * self.heads]) for n, alike in enumerate(groups)
        ]

    def _require_newest(self, queries: Tensor, step: Step) -> None:
        old = step.stop is not None and bool((step.stop != self.slots).any())
        if queries.shape[2] != 1 or old:
            raise InputError(
                "a FAISS index answers the newest position alone: append one key, then select"
            )

    def _vectors(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Keys or queries as FAISS takes them: moved, turned, in float32, where it works."""
        x = x.detach() if offset is None else x.detach() - offset
        return placed(self.recipe.turned(x), self.recipe.on_gpu).contiguous()

    def truncate(self, length: int, step: Step) -> None:
        for row, start in enumerate(self._starts(step)):
            adds = self.adds[row]
            if not adds or length >= adds[-1]:
                continue
            self.adds[row] = [n for n in adds if n < length] + [length] * (length > start)
            kept = [n - start for n in self.adds[row]]
            graphs = None
            if kept:
                self._own(row)
                graphs = self.graphs[row] or ()
                graphs = tuple(self.recipe.remove(self.faiss, g, kept) for g in graphs)
            self.graphs[row] = graphs
        self.tail = None if self.tail is None else self.tail.until(length)
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        gathered = rows.tolist()
        self.graphs = [self.graphs[row] for row in gathered]
        self.adds = [list(self.adds[row]) for row in gathered]
        self.borrowed = [True] * len(self.graphs)
        self.offset = None if self.offset is None else self.offset[rows.to(self.offset.device)]
        self.tail = None if self.tail is None else self.tail.gathered(rows)

    def fork(self) -> Index:
        twin = type(self)(self.recipe, self.heads, self.offset)
        twin.slots, twin.graphs = self.slots, list(self.graphs)
        twin.adds = [list(row) for row in self.adds]
        twin.borrowed, self.borrowed = [True] * len(self.graphs), [True] * len(self.graphs)
        twin.tail = None if self.tail is None else self.tail.fork()
        return twin


def unfilled(vectors: Tensor, k: int) -> Tensor:
    """Lists of k slots for vectors [B, Hk, q, D], all -1."""
    return vectors.new_full((*vectors.shape[:3], k), -1, dtype=torch.int64)
