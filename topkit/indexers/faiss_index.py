# pyright: strict, reportUnknownMemberType=false
"""The state of a FAISS recipe: an index for each row and KV head, which forks and rows share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.faiss_base import FaissRecipe, import_faiss
from topkit.indexers.faiss_best import Asked, Best, unfilled
from topkit.indexers.faiss_gpu import on_this_stream, placed
from topkit.indexers.faiss_search import Alike, Graphs, alike_of, searched
from topkit.indexers.faiss_tail import Tail
from topkit.indexers.faiss_threads import each, one_thread
from topkit.indexers.scored import cut_each


class FaissIndex(Index):
    """FAISS's indexes of all rows and KV heads.

    graphs: of each row a FAISS index a head, None until the row's first real key; offset [B, Hk, 1, D]:
    what is subtracted from keys. A graph that another stream has too is copied before it is appended to;
    new keys of a recipe that is `apart` go into the `tail` instead, and no graph is copied.
    """

    def __init__(self, recipe: FaissRecipe, heads: int, offset: Tensor | None) -> None:
        device = "cuda" if recipe.on_gpu else "cpu"
        self.recipe, self.faiss, self.offset = recipe, import_faiss(device), offset
        self.heads, self.slots = heads, 0
        self.graphs: list[Graphs | None] = []
        # Of each row: the lengths after each add, on which a graph depends; and whether another index
        # may have the same graphs.
        self.adds: list[list[int]] = []
        self.borrowed: list[bool] = []
        self.tail: Tail | None = None

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        """What each row alone would hold: graphs that rows share count for each of them."""
        graphs = [graph for row in self.graphs for graph in row or ()]
        own = 0 if self.offset is None else self.offset.untyped_storage().nbytes()
        own += 0 if self.tail is None else self.tail.nbytes
        return own + sum(self.recipe.size(graph) for graph in graphs)

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
        # FAISS gets no padding: its ids count from the row's first real key.
        real = {
            row: new[row, :, max(starts[row] - self.slots, 0) :]
            for row in range(len(new))
            if row not in apart
        }
        if self.slots > 0 and self.recipe.traits().causal_codes:
            # What is trained knows nothing of later keys.
            late = {row for row, x in real.items() if not self.graphs[row] and x.shape[1] > 1}
            self._add({row: real[row][:, :1] for row in late})
            real = {row: x[:, 1:] if row in late else x for row, x in real.items()}
        real = {row: x for row, x in real.items() if x.shape[1]}
        count = sum(x.shape[1] for x in real.values())
        self.recipe.foresee(count, stop, new.shape[3], len(real), self.heads)
        self._add(real)
        for row in real:
            self.adds[row].append(stop)
        self.slots = stop

    def _stands_apart(self, row: int) -> bool:
        # An index on a GPU cannot forget: it holds what it was built on, and nothing else.
        return self.recipe.apart and (self.borrowed[row] or self.recipe.on_gpu)

    def _add(self, parts: Mapping[int, Tensor]) -> None:
        """Add keys [Hk, t, D] of some rows to their graphs; what another stream has too is copied first."""
        recipe, faiss = self.recipe, self.faiss

        def add(job: tuple[int, int]) -> Any:
            row, head = job
            graphs, keys = self.graphs[row], parts[row][head]
            if graphs is None:
                return recipe.make(faiss, keys)
            graph = recipe.clone(faiss, graphs[head]) if self.borrowed[row] else graphs[head]
            recipe.add(faiss, graph, keys)
            return graph

        jobs = [(row, head) for row in parts for head in range(self.heads)]
        numbers = sum(keys.numel() for keys in parts.values())
        do: Callable[[tuple[int, int]], Any] = add
        if recipe.on_gpu and parts:  # the host trains
            do = on_this_stream(add, next(iter(parts.values())).device)
        done = each(faiss, do, jobs, numbers * recipe.placing)
        for n, row in enumerate(parts):
            self.graphs[row] = tuple(done[n * self.heads : (n + 1) * self.heads])
            self.borrowed[row] = False

    def _add_behind(self, new: Tensor, rows: Sequence[int]) -> None:
        """Put keys [B, Hk, t, D] of some rows into the tail; those of the other rows are in their graphs."""
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
        return alike_of(self.graphs, [adds[-1] if adds else 0 for adds in self.adds], rows)

    def _starts(self, step: Step) -> list[int]:
        return cast(list[int], step.starts().expand(len(self.graphs)).tolist())

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        asked = self._asked(queries, step)
        (rows, heads, tokens), k = queries.shape[:3], min(k, self.slots)
        slots: Tensor | None = None
        compared, read = asked.vectors.new_zeros(2, rows, tokens, dtype=torch.float64)
        groups = self._alike(range(rows))
        for alike, hits in searched(self.recipe, self.faiss, groups, asked, k, step.counted):
            place, graph = alike.place(rows), alike.graphs[0]
            tail = None if self.tail is None else self.tail.at(place)
            best = Best.of(asked.at(place), hits, k, tail)
            if len(best.slots) == rows and best.slots.shape[-1] == k:
                slots = best.slots
            else:
                slots = unfilled(asked.vectors, k) if slots is None else slots
                slots[place, ..., : best.slots.shape[-1]] = best.slots
            compared[place] = best.compared
            fixed = self.recipe.fixed_bytes(graph) * heads
            read[place] = best.compared * self.recipe.key_bytes(graph) + fixed
        slots = unfilled(asked.vectors, k) if slots is None else slots
        lists = slots.reshape(rows, heads, tokens, k)
        if not step.counted:
            return Selection(lists.to(queries.device))
        # Costs too are on the queries' device, since combinators add their own to them.
        here = [x.to(queries.device) for x in (lists, compared / heads, read)]
        return Selection(here[0], keys_scored=here[1], bytes_read=here[2])

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        if self.recipe.on_gpu:
            return super().select_many(queries, ks, step)
        return cut_each(self.select(queries, max(ks), step), ks)

    def _asked(self, queries: Tensor, step: Step) -> Asked:
        asked = Asked.of(self._vectors(queries), self.heads, step, self.slots)
        if asked.stop is not None and not self.recipe.traits().causal_codes:
            raise InputError(
                f"{type(self.recipe).__name__} answers the newest position alone: "
                "append one key, then select"
            )
        return asked

    def _vectors(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Keys or queries as FAISS takes them: offset subtracted, rotated, float32, on the device where it works."""
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
                # One thread, since the links of a graph depend on the order of its keys.
                with one_thread(self.faiss):
                    graphs = tuple(self.recipe.remove(self.faiss, g, kept) for g in graphs)
            self.graphs[row] = graphs
        self.tail = None if self.tail is None else self.tail.until(length)
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        gathered = cast(list[int], rows.tolist())
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
