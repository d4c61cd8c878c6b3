"""What fixed rows noted of their steps, as an observer takes it: judged at once, and required to be valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.evaluate.batch import Asked
from topkit.experiments.evaluate.lists import Lists, as_index
from topkit.experiments.evaluate.observer import Observer
from topkit.experiments.evaluate.shared_cache import LONG, SharedCache
from topkit.experiments.evaluate.stepped.fixed_rows import FixedRows
from topkit.experiments.evaluate.streams import Prefix
from topkit.fidelity.validity import require_valid
from topkit.indexers.base import Cache, Selection

# Scores that are judged at once: of several layers, as launches and waits cost more than what they do.
MANY = 1 << 26


def require_choices(rows: FixedRows, stops: Tensor) -> None:
    """Require of the last steps' selections, one for each of stops [n], what every driver requires.

    Raises: InputError.
    """
    lists = [x.noted["slots"][: len(stops)] for x in rows.layers.values() if x.indices]
    if lists:
        slots = torch.stack(lists).permute(0, 2, 3, 1, 4).flatten(0, 1)
        ks = torch.tensor(_ks(rows), device=stops.device).repeat(len(lists))
        require_valid(slots, stops.new_zeros(1), stops[None], ks, "the selection")


def judge(
    rows: FixedRows,
    prefix: Mapping[int, Prefix],
    first: int,
    stops: Tensor,
    observer: Observer,
    number: int,
) -> None:
    """Show the last steps to an observer, of rows that stand behind `number` others.

    They are of queries from `first` on, one for each of stops [n]; several layers are judged at once.
    """
    alike: dict[Any, list[int]] = {}
    for at, layer in rows.layers.items():
        if layer.indices:
            sinks = None if layer.softmax.sinks is None else at  # each layer has its own
            how = layer.scaling, layer.softmax.softcap, sinks
            kind = layer.noted["queries"].shape, layer.keys.shape, how
            alike.setdefault(kind, []).append(at)
    stop = int(stops[-1])
    for (shape, *_), layers in alike.items():
        for numbers in _together(rows, stop):
            each = len(numbers) * shape[2] * len(stops) * stop
            width = max(1, MANY // each)
            for begin in range(0, len(layers), width):
                some = layers[begin : begin + width]
                lists = _lists(rows, some, numbers, len(stops))
                asked, output = _asked(rows, prefix, some, numbers, first, stops)
                observer.layers(some, number, asked, lists, output)


class Caches(SharedCache):
    """The caches of several layers, whose rows stand one behind the other."""

    def __init__(self, caches: Sequence[SharedCache]) -> None:
        self.caches = caches
        self.counts = [len(cache.tail.keys) for cache in caches]

    def of(self, rows: slice | Tensor) -> Caches:
        """Those of some rows that stand together."""
        assert isinstance(rows, slice)
        begin, stop, _ = rows.indices(sum(self.counts))
        some, first = [], 0
        for cache, count in zip(self.caches, self.counts, strict=True):
            own = slice(max(begin - first, 0), min(stop - first, count))
            if own.start < own.stop:
                some.append(cache.of(own))
            first += count
        return Caches(some)

    def weigh(self, weights: Tensor, at: int = 0, part: slice | None = None) -> Tensor:
        if part is not None:
            return self.of(part).weigh(weights, at)
        parts = zip(self.caches, weights.split(self.counts), strict=True)
        return torch.cat([cache.weigh(own, at) for cache, own in parts])


def _asked(
    rows: FixedRows,
    prefix: Mapping[int, Prefix],
    layers: Sequence[int],
    numbers: Sequence[int],
    first: int,
    stops: Tensor,
) -> tuple[Asked, Tensor]:
    """The queries of some rows of some layers, and the output [L B, Hq, n, Dv] over what they chose."""
    at, stop = as_index(numbers, stops.device), int(stops[-1])
    caches, queries, outputs = list[SharedCache](), list[Tensor](), list[Tensor]()
    for number in layers:
        layer, past = rows.layers[number], prefix[number]
        tail = slice(past.length, stop)
        caches.append(past.then(Cache(layer.keys[at, :, tail], layer.values[at, :, tail])))
        queries.append(layer.noted["queries"][: len(stops), at].permute(1, 2, 0, 3))
        outputs.append(layer.noted["output"][: len(stops), at].permute(1, 2, 0, 3))
    scores = torch.cat([cache.scores(own) for cache, own in zip(caches, queries, strict=True)])
    norms = torch.cat([cache.norms() for cache in caches])
    like, every = rows.layers[layers[0]], Caches(caches)
    own = first, torch.cat(queries), scores, norms, stops, every, like.softmax
    asked = Asked(layers[0], like.scaling, *own)
    return asked, torch.cat(outputs)


def _together(rows: FixedRows, length: int) -> list[list[int]]:
    """The rows that choose: those of long lists apart from those of short ones."""
    ks = _ks(rows)
    sparse = [row for group in rows.groups if group.indexer for row in _range(group.rows)]
    kinds = (
        [row for row in sparse if (ks[row] * LONG >= length) == long] for long in (False, True)
    )
    return [numbers for numbers in kinds if numbers]


def _range(rows: slice) -> range:
    return range(rows.start, rows.stop)


def _lists(rows: FixedRows, layers: Sequence[int], numbers: Sequence[int], count: int) -> Lists:
    every, at = _ks(rows), as_index(numbers, rows.device)
    group_of = {row: n for n, group in enumerate(rows.groups) for row in _range(group.rows)}
    ks, groups = [every[row] for row in numbers], [group_of[row] for row in numbers]
    some = [rows.layers[number] for number in layers]
    weighted = [layer.weighted[n] for layer in some for n in groups]
    units = [layer.units[n] for layer in some for n in groups]
    wide = min(max(ks), some[0].slots.shape[-1])

    def of_rows(name: str) -> Tensor:
        parts = [layer.noted[name][:count, at, :, :wide].permute(1, 2, 0, 3) for layer in some]
        return torch.cat(parts)

    costs = torch.cat([layer.noted["costs"][:count, :, at].permute(1, 2, 0) for layer in some], 1)
    scored, read = costs.double()
    logs = of_rows("logs") if any(weighted) else None
    selection = Selection(of_rows("slots").long(), logs, None, scored, read)
    many = len(layers)
    return Lists([*numbers] * many, slice(0, count), selection, ks * many, units, weighted)


def _ks(rows: FixedRows) -> list[int]:
    """How many keys each row keeps; none where it attends to all."""
    ks = [0] * rows.count
    for group in rows.groups:
        for among, k in group.runs:
            for row in range(group.rows.start + among.start, group.rows.start + among.stop):
                ks[row] = k
    return ks
