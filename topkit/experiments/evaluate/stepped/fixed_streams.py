"""Streams whose rows are stepped at fixed shapes: where they stand, and what their indexes would hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from topkit.experiments.decode.driver import Driver, tokens
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.stepped.fixed_rows import FixedRows, Group
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.runs.cells import Cell
from topkit.indexers.base import Cache, Index


@dataclass
class FixedStream(Stream):
    """One recipe's rows, `numbers` of those that are fixed, behind `length` slots.

    `sizes`: of each layer, an index like those of other streams, which says how many bytes they hold.
    """

    numbers: Sequence[int] = ()
    length: int = 0
    sizes: dict[int, Any] = field(default_factory=dict)

    def nbytes(self, layer: int) -> int:
        return self.sizes[layer].nbytes

    @property
    def cuts(self) -> bool:
        return True

    def cut(self, length: int, prefix: Mapping[int, Prefix]) -> None:
        """Count from the first `length` tokens that follow the prefix; what is behind is written over."""
        self.length = next(iter(prefix.values())).length + length

    def fork(self, rows: Tensor | None = None) -> FixedStream:
        """The same rows, or some, as they are now: to go on from here is to write over what came behind.

        How many bytes their indexes hold is asked of the stream itself, whose `sizes` have all its rows.
        """
        chosen = range(self.rows) if rows is None else rows.tolist()
        cells, numbers = [self.cells[n] for n in chosen], [self.numbers[n] for n in chosen]
        own: Any = {"numbers": numbers, "length": self.length}
        return FixedStream(cells, self.context, {}, self.seed, **own)


def fixed_streams(
    rows: FixedRows, built: Built, cells: Sequence[Cell], context: int
) -> list[FixedStream]:
    """The streams of all rows, behind the prefix; `cells` has the cell of each row."""
    length, streams = next(iter(built.prefix.values())).length, []
    for group in rows.groups:
        numbers = range(group.rows.start, group.rows.stop)
        own = [cells[n] for n in numbers]
        sizes = sizes_of(rows, group, built)
        how: Any = {"numbers": numbers, "length": length, "sizes": sizes}
        streams.append(FixedStream(own, context, {}, built.seed, **how))
    return streams


def grow(rows: FixedRows, stream: FixedStream, prefix: Mapping[int, Prefix], at_once: bool) -> None:
    """Let the indexes that say how many bytes they hold come to the length of a stream.

    They grow as those of other streams: a token at a time where codes see later keys, unless all are read
    `at_once`.
    """
    for number, index in stream.sizes.items():
        if isinstance(index, _Like):
            continue
        assert stream.indexer is not None
        past, layer = prefix[number], rows.layers[number]
        places = slice(stream.numbers[0], stream.numbers[-1] + 1)
        driver = Driver(
            stream.indexer,
            number,
            past.scaling,
            past.cache.heads,
            stream.seed,
            softmax=past.softmax,
        )
        whole = at_once or stream.indexer.traits().causal_codes
        while index.length < stream.length:
            stop = stream.length if whole else index.length + 1
            tail = slice(past.length, stop)
            cache = past.then(Cache(layer.keys[places, :, tail], layer.values[places, :, tail]))
            # Of inputs the shapes alone count.
            some = slice(0, stop - index.length)
            inputs = {n: _expanded(tokens(x, some), stream.rows) for n, x in past.inputs.items()}
            driver.append(index, cache, inputs)


@dataclass
class _Like:
    """As many bytes as an index of another layer."""

    other: Index

    @property
    def nbytes(self) -> int:
        return self.other.nbytes


def sizes_of(rows: FixedRows, group: Group, built: Built) -> dict[int, Any]:
    """An index of each shape and size that layers have; it grows as those of other rows do."""
    indices, firsts = dict[int, Any](), dict[Any, Index]()
    if group.indexer is None:
        return indices
    of_layers = built.of(group.indexer)
    for number in built.prefix:
        one = of_layers[number]
        kind = one.nbytes, built.prefix[number].cache.keys.shape
        if kind in firsts:
            indices[number] = _Like(firsts[kind])
        else:
            count = group.rows.stop - group.rows.start
            indices[number] = firsts[kind] = built.rows(one, number, count)
    return indices


def _expanded(x: Any, rows: int) -> Any:
    if isinstance(x, tuple):
        return tuple(_expanded(part, rows) for part in x)
    return x.expand(rows, *x.shape[1:])
