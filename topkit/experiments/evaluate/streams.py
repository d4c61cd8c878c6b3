"""Selectors as rows of one batch: one prefix, prefilled dense once, and a tail of each row's own.

The keys and values of the prefix are stored once for each question of a batch, whatever the
number of selectors; each selector writes its tail behind them just before it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.decode.attention import dense_attention, sparse_attention
from topkit.experiments.decode.driver import Choice, Driver, require_choice
from topkit.experiments.decode.upstream import Upstream
from topkit.experiments.runs.cells import Cell
from topkit.indexers.base import Cache, Index, Selection
from topkit.indexers.budget import UNCAPPED

# Called with the layer, some queries, the cache, what they selected, and where they stand.
Watch = Callable[[int, Tensor, Cache, Selection, Choice], None]


@dataclass
class Past:
    """One layer's prefix, in B rows alike, with room for tails behind it.

    Shapes: keys [B, Hk, P + room, D], values [B, Hk, P + room, Dv]; inputs of the prefix's tokens
    are [1, P, ...].
    """

    keys: Tensor
    values: Tensor
    length: int
    scaling: float
    window: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)

    def with_room(self, rows: int, room: int) -> Past:
        """The same prefix in `rows` rows, with room for `room` more slots."""

        def grown(x: Tensor) -> Tensor:
            prefix = x[:1, :, : self.length]
            new = x.new_zeros(rows, x.shape[1], self.length + room, x.shape[3])
            new[:, :, : self.length] = prefix
            return new

        return Past(
            grown(self.keys),
            grown(self.values),
            self.length,
            self.scaling,
            self.window,
            self.inputs,
        )

    def then(self, keys: Tensor, values: Tensor) -> Cache:
        """The prefix and behind it the tails [b, Hk, t, D] of b rows: views, good until the next call."""
        rows, stop = keys.shape[0], self.length + keys.shape[2]
        self.keys[:rows, :, self.length : stop] = keys
        self.values[:rows, :, self.length : stop] = values
        return Cache(self.keys[:rows, :, :stop], self.values[:rows, :, :stop])

    @property
    def prefix(self) -> Cache:
        return Cache(self.keys[:1, :, : self.length], self.values[:1, :, : self.length])

    def dense(self, length: int) -> bool:
        """Whether a sliding window already selects this layer's keys."""
        return self.window is not None and self.window < length


@dataclass
class Stream:
    """One cell's decoding of b questions after the same prefix: an index and a tail per layer."""

    cell: Cell
    k: int | None
    indices: dict[int, Index]
    seed: int
    rows: int
    tails: dict[int, Cache] = field(default_factory=dict)
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self.upstream = None if self.cell.indexer is None else Upstream(self.cell.indexer)

    def fork(self, rows: Tensor | None = None) -> Stream:
        """An independent copy, of some rows [b'] or all."""
        indices = {layer: index.fork() for layer, index in self.indices.items()}
        tails = dict(self.tails)
        if rows is not None:
            for index in indices.values():
                index.reorder(rows)
            tails = {n: Cache(t.keys[rows], t.values[rows]) for n, t in tails.items()}  # type: ignore[index]
        count = self.rows if rows is None else len(rows)
        return Stream(self.cell, self.k, indices, self.seed, count, tails)

    def follow(self, layer: int, past: Past, keys: Tensor, values: Tensor, inputs: dict) -> None:
        """Append keys and values [b, Hk, t, D] that another stream attended to."""
        cache = self._grow(layer, past, keys, values)
        if layer in self.indices:
            self._driver(layer, past, cache).append(self.indices[layer], cache, inputs)

    def attend(
        self,
        layer: int,
        past: Past,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        inputs: dict[str, Any],
    ) -> Tensor:
        """The attention output [b, Hq, t, Dv] of new tokens, whose keys and values join the tail."""
        cache = self._grow(layer, past, keys, values)
        if layer not in self.indices or past.dense(cache.keys.shape[2]):
            return dense_attention(queries, cache, past.scaling, past.window)
        k, outputs, parts = self.k, [], []
        assert k is not None and self.cell.indexer is not None and self.upstream is not None
        if self.cell.budget == UNCAPPED:
            # What is said may go on behind the length that k is a share of.
            k = max(k, cache.keys.shape[2])
        driver = self._driver(layer, past, cache)
        above = self.upstream.of(layer)
        for choice in driver.select(
            self.indices[layer], [k], queries, cache, inputs, upstream=above
        ):
            require_choice(choice, k, self.cell.indexer)
            part, selection = queries[:, :, choice.place], choice.by_budget[k]
            parts.append(selection)
            outputs.append(sparse_attention(part, cache, selection, past.scaling))
            if self.watch is not None:
                self.watch(layer, part, cache, selection, choice)
        self.upstream.keep(layer, parts)
        return torch.cat(outputs, 2)

    def _grow(self, layer: int, past: Past, keys: Tensor, values: Tensor) -> Cache:
        if layer in self.tails:
            tail = self.tails[layer]
            assert tail.values is not None
            keys, values = torch.cat([tail.keys, keys], 2), torch.cat([tail.values, values], 2)
        self.tails[layer] = Cache(keys, values)
        return past.then(keys, values)

    def _driver(self, layer: int, past: Past, cache: Cache) -> Driver:
        assert self.cell.indexer is not None
        return Driver(self.cell.indexer, layer, past.scaling, cache.keys.shape[1], self.seed)
