"""Recipes as rows of one batch: one prefix, prefilled dense and held once, and a tail of each row's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.experiments.decode.driver import Driver, Memo, QuerySlots, tokens
from topkit.experiments.decode.upstream import Upstream
from topkit.experiments.evaluate.lists import Chosen
from topkit.experiments.evaluate.shared_cache import SharedCache
from topkit.experiments.runs.cells import Cell
from topkit.indexers.base import Cache, Index, Indexer, Selection
from topkit.indexers.budget import UNCAPPED
from topkit.kernels.gather_attention import PLAIN, Softmax
from topkit.kernels.rounding import norms


@dataclass
class Prefix:
    """One layer's prefix: keys [1, Hk, P, D], values [1, Hk, P, Dv], and the inputs of its tokens [1, P, ...].

    heads: of queries; listed: the model's own indexer chooses here; index_keys [1, P, d]: what it scores, in a layer where it does;
    softmax: the layer's sinks and softcap.
    """

    cache: Cache
    scaling: float
    window: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    heads: int = 0
    listed: bool = False
    index_keys: Tensor | None = None
    softmax: Softmax = PLAIN

    @property
    def length(self) -> int:
        return self.cache.length

    @cached_property
    def norms(self) -> Tensor:
        return norms(self.cache.keys)

    def then(self, tail: Cache) -> SharedCache:
        return SharedCache(self.cache, self.norms, tail)

    def dense(self, length: int) -> bool:
        """Whether a sliding window already selects this layer's keys."""
        return self.window is not None and self.window < length


@dataclass
class Stream:
    """One recipe's decoding of rows after the same prefix; an index and a tail per layer.

    `cells` has the cell of each row: those of one recipe at its budgets, each with its questions (at one
    budget, if it is `alone`), or full attention. context: the length that budgets in per cent are of.
    index_keys [b, t, d], by layer: what the model's own indexer scores of the tails, in rows that read its lists.
    """

    cells: Sequence[Cell]
    context: int
    indices: dict[int, Index]
    seed: int
    tails: dict[int, Cache] = field(default_factory=dict)
    index_keys: dict[int, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.cells)

    @property
    def indexer(self) -> Indexer | None:
        return self.cells[0].indexer

    @property
    def reads_lists(self) -> bool:
        """Whether its recipe reads what the model's own indexer lists."""
        return self.indexer is not None and "native" in self.indexer.needs

    def __post_init__(self) -> None:
        self.upstream = None if self.indexer is None else Upstream(self.indexer)
        # What the queries of this layer's call selected, piece by piece.
        self.selected: list[Selection] = []

    def nbytes(self, layer: int) -> int:
        """Bytes that the index of a layer holds."""
        return self.indices[layer].nbytes

    @property
    def cuts(self) -> bool:
        """Whether `cut` leaves it as if what it forgets had never been read."""
        return self.cuts_its_index

    @property
    def cuts_its_index(self) -> bool:
        """Whether its indexes forget as if they had never known."""
        traits = None if self.indexer is None else self.indexer.traits()
        return traits is None or not (traits.drifts or traits.remembers)

    def cut(self, length: int, prefix: Mapping[int, Prefix]) -> None:
        """Forget all tokens behind the first `length` that follow the prefix."""
        self.index_keys = {layer: keys[:, :length] for layer, keys in self.index_keys.items()}
        for layer, tail in self.tails.items():
            if length < tail.length:
                self.tails[layer] = tail.until(length)
                if layer in self.indices:
                    cache = prefix[layer].then(self.tails[layer])
                    self._driver(layer, prefix[layer]).truncate(self.indices[layer], cache)

    def fork(self, rows: Tensor | None = None) -> Stream:
        """An independent copy, of some rows [b'] or all."""
        indices = {layer: index.fork() for layer, index in self.indices.items()}
        if rows is None:
            tails, own = dict(self.tails), dict(self.index_keys)
            return Stream(self.cells, self.context, indices, self.seed, tails, own)
        for index in indices.values():
            index.reorder(rows)
        tails = {n: Cache(t.keys[rows], t.values[rows]) for n, t in self.tails.items()}  # type: ignore[index]
        cells = [self.cells[row] for row in rows.tolist()]
        own = {layer: keys[rows] for layer, keys in self.index_keys.items()}
        return Stream(cells, self.context, indices, self.seed, tails, own)

    def follow(self, layer: int, prefix: Prefix, new: Cache, inputs: dict[str, Any]) -> None:
        """Append new keys and values [B, Hk, t, D], which another stream attended to."""
        tail = self.tails.get(layer)
        self.tails[layer] = new if tail is None else joined([tail, new], 2)
        if layer in self.indices:
            cache = prefix.then(self.tails[layer])
            self._driver(layer, prefix).append(self.indices[layer], cache, inputs)

    def choose(
        self,
        layer: int,
        prefix: Prefix,
        queries: Tensor,
        cache: Cache,
        inputs: dict[str, Any],
        place: slice,
        known: Memo,
        first: int,
    ) -> Iterator[Chosen]:
        """What the queries at `place` among the newest slots select; the stream's rows stand behind `first`.

        Shapes: queries [B, Hq, n, D]; inputs are of the newest slots, values among them; `known` is what
        was computed of the queries and all keys already.
        """
        assert self.indexer is not None and self.upstream is not None
        index, length = self.indices[layer], cache.length
        newest = inputs["values"].shape[2]
        inputs = {name: x for name, x in inputs.items() if name in self.indexer.needs}
        lacking = {
            name: tokens(x, slice(newest - (length - index.length), None))
            for name, x in inputs.items()
        }
        where = QuerySlots(
            range(length - newest + place.start, length - newest + place.stop),
            {name: tokens(x, place) for name, x in inputs.items()},
            known,
        )
        runs = self._runs(length)
        ks = sorted({k for _, k in runs})
        driver, above = self._driver(layer, prefix), self.upstream.of(layer)
        if above is not None:
            above = tokens(above, place)
        if place.start == 0:
            self.selected = []
        for choice in driver.select(index, ks, queries, cache, lacking, where, above):
            if "upstream" in self.indexer.needs:
                self.selected.append(_of_rows(choice.by_budget, runs))
            for own, k in runs:
                rows = slice(first + own.start, first + own.stop)
                yield Chosen(self.indexer, rows, own, choice.place, k, choice.by_budget[k])
        self.upstream.keep(layer, self.selected)

    def _runs(self, length: int) -> list[tuple[slice, int]]:
        """Rows of one budget each, and their k."""
        runs, first = [], 0
        for cell, some in groupby(self.cells):
            rows = slice(first, first + len(list(some)))
            k, first = cell.k(self.context), rows.stop
            assert k is not None
            # What is said may go on behind the length that k is a share of.
            runs.append((rows, max(k, length) if cell.budget == UNCAPPED else k))
        return runs

    def _driver(self, layer: int, prefix: Prefix) -> Driver:
        assert self.indexer is not None
        heads, softmax = prefix.cache.heads, prefix.softmax
        return Driver(self.indexer, layer, prefix.scaling, heads, self.seed, softmax=softmax)


def _of_rows(chosen: Mapping[int, Selection], runs: Sequence[tuple[slice, int]]) -> Selection:
    """Of each row what it selected at its own k; narrow lists are filled with -1."""
    if len(runs) == 1:
        return chosen[runs[0][1]]
    width = max(chosen[k].indices.shape[-1] for _, k in runs)

    def wide(x: Tensor, fill: float) -> Tensor:
        return pad(x, (0, width - x.shape[-1]), value=fill)

    weights = [
        wide(logs[own], 0.0) for own, k in runs if (logs := chosen[k].log_weights) is not None
    ]
    slots = torch.cat([wide(chosen[k].indices[own], -1) for own, k in runs])
    return Selection(slots, torch.cat(weights) if weights else None)


def rows_of(x: Any, rows: slice | Tensor) -> Any:
    """Some rows of an input; angles that are the same for all rows have one row."""
    if isinstance(x, tuple):
        return tuple(rows_of(part, rows) for part in x)
    return x if not isinstance(x, Tensor) or x.shape[0] == 1 else x[rows]


def joined(caches: Sequence[Cache], dim: int) -> Cache:
    """Rows or slots of some caches, one behind the other."""
    if len(caches) == 1:
        return caches[0]
    values = [cache.values for cache in caches if cache.values is not None]
    return Cache(torch.cat([cache.keys for cache in caches], dim), torch.cat(values, dim))
