"""Rows whose recipe chooses as its host sees fit, between the graphs of a step: FAISS, and what reads upstream.

All but the choice is as of fixed rows: in each layer one graph ends with the queries, and the next begins
with the lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.graph_capture import on_the_host
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.fixed_layer import Layer
from topkit.experiments.evaluate.fixed_rows import FixedRows
from topkit.experiments.evaluate.fixed_streams import FixedStream, sizes_of
from topkit.experiments.evaluate.groups import packed, rows_of
from topkit.experiments.evaluate.lists import Chosen
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.model.attention_call import AttentionCall
from topkit.indexers.base import Index
from topkit.indexers.exact import norms_of, true_scores_of
from topkit.kernels.precision import full_precision


class HostedRows(FixedRows):
    """The rows of one recipe; `stream` is whose step it is, behind `stop` slots with its own."""

    stream: HostedStream
    stop: int

    def _indices(self, number: int, built: Built) -> dict[int, Index]:
        (group,) = self.groups
        assert group.indexer is not None
        return {0: built.of(group.indexer)[number]}

    def begin(self, prefix: Mapping[int, Prefix], built: Built) -> None:
        (group,) = self.groups
        assert group.indexer is not None
        self.prefix, self._idle = prefix, False
        self.sums.zero_()
        for number, layer in self.layers.items():
            layer.begin(prefix[number])
            layer.weighted[0] = group.indexer.traits().weighted

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Nothing is chosen in here: an index takes each key once."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def stand(self, streams: Sequence[FixedStream], slot: int) -> None:
        """Tell whose step comes, and at which slot."""
        (stream,) = streams
        self.stream, self.stop = cast("HostedStream", stream), slot + 1

    @full_precision()
    def attend(self, call: AttentionCall, sparse: bool) -> Tensor:
        call, stop = packed(call), self.at[None] + 1
        layer, queries = self.layers[call.layer], call.queries
        scores = self.scores(call, stop)
        if layer.dense or not sparse:
            output = layer.attend_all(scores, slice(None), stop)
        else:
            on_the_host(partial(self._choose, call, scores))
            output = layer.attend_lists(scores, 0)
            layer.note(self.place, queries=queries, output=output, costs=layer.costs)
        return output.to(queries.dtype).transpose(1, 2)

    def _choose(self, call: AttentionCall, scores: Tensor) -> None:
        """Let the recipe choose, and put its lists where the next graph reads them."""
        if self._idle:
            return
        layer, rows, stop = self.layers[call.layer], self.stream.among, self.stop
        known = {
            true_scores_of(stop): scores[rows, ..., :stop],
            norms_of(stop): layer.norms[rows, :, :stop],
        }
        inputs: dict[str, Any] = {"values": call.values, **call.inputs}
        inputs = {name: rows_of(x, rows) for name, x in inputs.items()}
        given: Any = (call.queries[rows], layer.until(stop, rows), inputs, slice(0, 1), known, 0)
        for one in self.stream.choose(call.layer, self.prefix[call.layer], *given):
            self._put(layer, one)

    def _put(self, layer: Layer, one: Chosen) -> None:
        chosen, numbers = one.selection, self.stream.numbers[one.rows.start : one.rows.stop]
        if chosen.rest is not None:
            raise InputError(f"{one.indexer} gives pseudo-keys")
        layer.units[0] = one.lists
        slots, logs = chosen.indices[one.own], chosen.log_weights
        for n, number in enumerate(numbers):
            place, own = slice(number, number + 1), slice(n, n + 1)
            layer.slots[place].fill_(-1)
            layer.put(place, slots[own], None if logs is None else logs[one.own][own])
            for kind, cost in enumerate((chosen.keys_scored, chosen.bytes_read)):
                if isinstance(cost, Tensor) and len(cost) > 1:
                    cost = cost[one.own][own]
                layer.costs[kind, place] = cost.reshape(1) if isinstance(cost, Tensor) else cost


@dataclass
class HostedStream(FixedStream):
    """A stream with its own indexes, and its keys and values in the buffers of `home`."""

    home: HostedRows | None = None

    def nbytes(self, layer: int) -> int:
        # Codes that are appended one by one have other room behind them than those of a whole pass.
        sizes = self.sizes if layer in self.sizes else self.indices
        return sizes[layer].nbytes

    @property
    def among(self) -> Any:
        """Its rows among those of `home`, as an index."""
        whole = range(self.numbers[0], self.numbers[-1] + 1)
        if list(self.numbers) == list(whole):
            return slice(whole.start, whole.stop)
        return torch.tensor(self.numbers)

    @property
    def cuts(self) -> bool:
        return self.cuts_its_index

    def cut(self, length: int, prefix: Mapping[int, Prefix]) -> None:
        super().cut(length, prefix)
        assert self.home is not None
        for number, index in self.indices.items():
            if index.length > self.length:
                cache = self.home.layers[number].until(self.length, self.among)
                self._driver(number, prefix[number]).truncate(index, cache)

    def read_dense(self, prefix: Mapping[int, Prefix]) -> None:
        """Append the keys that were attended to without a choice."""
        assert self.home is not None
        for number, index in self.indices.items():
            cache = self.home.layers[number].until(self.length, self.among)
            assert cache.values is not None
            inputs = {"values": cache.values[:, :, index.length :]}
            self._driver(number, prefix[number]).append(index, cache, inputs)

    def fork(self, rows: Tensor | None = None) -> HostedStream:
        twin, own = super().fork(rows), {n: index.fork() for n, index in self.indices.items()}
        if rows is not None:
            for index in own.values():
                index.reorder(rows)
        return HostedStream(
            twin.cells, self.context, own, self.seed, numbers=twin.numbers, length=self.length, sizes=self.sizes,
            home=self.home,
        )  # fmt: skip


def hosted_stream(stream: Stream, home: HostedRows, built: Built) -> HostedStream:
    """A stream of the prefix, with all rows of `home`."""
    assert stream.indexer is not None
    alike = stream.indexer.traits().causal_codes
    sizes = sizes_of(home, home.groups[0], built) if alike else {}
    length = next(iter(home.prefix.values())).length
    indices = {n: index for n, index in stream.indices.items() if not home.layers[n].dense}
    return HostedStream(
        stream.cells, stream.context, indices, stream.seed, numbers=range(stream.rows), length=length,
        sizes=sizes, home=home,
    )  # fmt: skip
