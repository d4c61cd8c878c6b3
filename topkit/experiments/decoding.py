"""Selectors as rows of one batch: one prefix, prefilled dense once, and a tail of each row's own.

The keys and values of the prefix are held once for each question asked at a time, whatever the
number of selectors; each selector writes its tail behind them just before it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.cells import Cell
from topkit.indexers.base import Cache, Index, Indexer, Selection, Step
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.score import score

# Floats of scores, or of gathered keys, that one call may make: more queries go in pieces.
PIECE = 1 << 25

# Called with layer, queries, keys, values, selection and stops [Tq] of each piece of queries.
Watch = Callable[[int, Tensor, Tensor, Tensor, Selection, Tensor], None]


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
        """The same prefix in so many rows, with so much room."""

        def grown(held: Tensor) -> Tensor:
            held = held[:1, :, : self.length]
            shape = (rows, held.shape[1], self.length + room, held.shape[3])
            new = held.new_zeros(shape)
            new[:, :, : self.length] = held
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
        """Whether a sliding window already chooses for this layer."""
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
        """Take in keys and values [b, Hk, t, D] that another stream attended to."""
        cache = self._grow(layer, past, keys, values)
        if layer in self.indices:
            step = replace(self._step(layer, past, cache), inputs={"cache": cache, **inputs})
            self.indices[layer].append(keys, step.given_to(self.cell.indexer))  # type: ignore[arg-type]

    def attend(
        self,
        layer: int,
        past: Past,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        inputs: dict[str, Any],
    ) -> Tensor:
        """The attention output [b, Hq, t, Dv] of new tokens, their keys and values taken in."""
        cache = self._grow(layer, past, keys, values)
        length, count = cache.keys.shape[2], queries.shape[2]
        stops = torch.arange(length - count + 1, length + 1, device=queries.device)
        if layer not in self.indices or past.dense(length):
            return dense_attention(queries, cache, stops, past.scaling, past.window)
        indexer, index, k, outputs = self.cell.indexer, self.indices[layer], self.k, []
        assert indexer is not None and k is not None
        step = self._step(layer, past, cache)
        chosen = select_each(indexer, index, k, queries, keys, cache, inputs, step)
        for asked, selection, at in chosen:
            part = queries[:, :, asked]
            assert cache.values is not None
            outputs.append(attend_chosen(part, cache, selection, past.scaling))
            if self.watch is not None:
                self.watch(layer, part, cache.keys, cache.values, selection, at)
        return torch.cat(outputs, 2)

    def _grow(self, layer: int, past: Past, keys: Tensor, values: Tensor) -> Cache:
        if layer in self.tails:
            held = self.tails[layer]
            assert held.values is not None
            keys, values = torch.cat([held.keys, keys], 2), torch.cat([held.values, values], 2)
        self.tails[layer] = Cache(keys, values)
        return past.then(keys, values)

    def _step(self, layer: int, past: Past, cache: Cache) -> Step:
        return Step(layer, past.scaling, self.seed, kv_heads=cache.keys.shape[1])


def select_each(
    indexer: Indexer,
    index: Index,
    k: int,
    queries: Tensor,
    keys: Tensor,
    cache: Cache,
    inputs: Mapping[str, Any],
    step: Step,
) -> Iterator[tuple[slice, Selection, Tensor]]:
    """Take in keys and ask their queries, in pieces: place among the queries, selection, stops [t].

    The queries, keys and inputs are of the newest tokens of the cache; `step` lacks the inputs.
    """
    length, count = cache.keys.shape[2], queries.shape[2]
    stops = torch.arange(length - count + 1, length + 1, device=queries.device)

    def at(now: Cache, asked: slice, stop: Tensor | None) -> Step:
        given = {name: tokens(x, asked) for name, x in inputs.items()}
        return replace(step, stop=stop, inputs={"cache": now, **given}).given_to(indexer)

    if indexer.causal_codes:
        index.append(keys, at(cache, slice(None), None))
    # A code that has seen the next key would let the future in: one key, then one query.
    width = _piece(queries, length, k) if indexer.causal_codes else 1
    for first in range(0, count, width):
        asked = slice(first, min(first + width, count))
        now = cache if indexer.causal_codes else _until(cache, length - count + asked.stop)
        stop = stops[None, asked] if indexer.causal_codes and count > 1 else None
        here = at(now, asked, stop)
        if not indexer.causal_codes:
            index.append(keys[:, :, asked], here)
        yield asked, index.select(queries[:, :, asked], k, here), stops[asked]


def attend_chosen(
    queries: Tensor, cache: Cache, chosen: Selection, scaling: float, backend: str = "auto"
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of queries over what they chose."""
    rest = chosen.rest
    return gather_attention(
        queries,
        cache.keys,
        cache.values,  # type: ignore[arg-type]
        chosen.indices,
        scaling=scaling,
        log_weights=chosen.log_weights,
        rest_values=None if rest is None else rest.values,
        rest_logits=None if rest is None else rest.logits,
        rest_share=None if rest is None else rest.share,
        backend=backend,
    )


def dense_attention(
    queries: Tensor, cache: Cache, stops: Tensor, scaling: float, window: int | None = None
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of queries over all slots before their stops [Tq].

    A window leaves each query the newest so many slots.
    """
    assert cache.values is not None
    slots = torch.arange(cache.keys.shape[2], device=queries.device)
    hidden = slots >= stops[:, None]
    if window is not None:
        hidden |= slots < stops[:, None] - window
    width = _piece(queries, len(slots), 1)
    outputs = []
    for first in range(0, queries.shape[2], width):
        part = slice(first, first + width)
        logits = scaling * score(queries[:, :, part], cache.keys)
        weights = logits.masked_fill_(hidden[part], float("-inf")).softmax(-1)
        by_group = weights.unflatten(1, (cache.values.shape[1], -1)).flatten(2, 3)
        summed = by_group @ cache.values.float()
        outputs.append(summed.unflatten(2, (-1, weights.shape[2])).flatten(1, 2))
    return torch.cat(outputs, 2).to(queries.dtype)


def _piece(queries: Tensor, length: int, k: int) -> int:
    """How many queries to ask at once."""
    rows, heads, _, width = queries.shape
    return max(1, PIECE // (rows * heads * max(length, k * width)))


def _until(cache: Cache, stop: int) -> Cache:
    assert cache.values is not None
    return Cache(cache.keys[:, :, :stop], cache.values[:, :, :stop])


def tokens(given: Any, asked: slice) -> Any:
    """An input's tokens: hidden states [B, t, C], values [B, Hk, t, Dv], or a pair of angles."""
    if isinstance(given, tuple):
        return tuple(tokens(x, asked) for x in given)
    return given[..., asked, :]
