"""Rows whose recipes choose as their hosts see fit, between the graphs of a step: FAISS, and what reads upstream.

Questions and true answers are read by whole passes, kernel by kernel, which ask a host once for all tokens.
Own words come one by one: in each layer one graph ends with the queries, and the next begins with the lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.graph_capture import on_the_host
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.lists import Chosen
from topkit.experiments.evaluate.stepped.fixed_layer import Layer
from topkit.experiments.evaluate.stepped.fixed_rows import FixedRows
from topkit.experiments.evaluate.stepped.fixed_streams import FixedStream
from topkit.experiments.evaluate.stepped.groups import Way, packed, rows_of
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.model.attention_call import AttentionCall
from topkit.indexers.base import Cache, Index
from topkit.indexers.exact import norms_of, true_scores_of
from topkit.kernels.precision import full_precision
from topkit.kernels.rounding import norms


class HostedRows(FixedRows):
    """The rows of all such recipes; `streams` are those whose step it is, behind `stop` slots with its own."""

    streams: Sequence[HostedStream] = ()
    stop: int

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        # The rows whose step it is. The others wait at later places, and choose nothing here: what they
        # have at this one stays.
        self.standing = torch.zeros(self.count, 1, 1, 1, dtype=torch.bool, device=self.device)

    def _indices(self, number: int, built: Built) -> dict[int, Index]:
        every = ((n, group.indexer) for n, group in enumerate(self.groups))
        return {n: built.of(indexer)[number] for n, indexer in every if indexer is not None}

    def begin(self, prefix: Mapping[int, Prefix], built: Built) -> None:
        self.prefix, self._idle = prefix, False
        self.sums.zero_()
        for number, layer in self.layers.items():
            layer.begin(prefix[number])
            for n, group in enumerate(self.groups):
                assert group.indexer is not None
                layer.weighted[n] = group.indexer.traits().weighted

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
        self.streams, self.stop = cast("Sequence[HostedStream]", streams), slot + 1
        self.standing.zero_()
        for stream in self.streams:
            self.standing[stream.among] = True

    def _standing(self, call: AttentionCall) -> AttentionCall:
        """A call whose keys and values are new in the rows whose step it is alone."""
        layer = self.layers[call.layer]
        new = ((call.keys, layer.keys), (call.values, layer.values))
        keys, values = (x.where(self.standing, old.index_select(2, self.at)) for x, old in new)
        return replace(call, keys=keys, values=values)

    @full_precision()
    def attend(self, call: AttentionCall, way: Way) -> Tensor:
        call, stop = self._standing(packed(call)), self.at[None] + 1
        layer, queries = self.layers[call.layer], call.queries
        scores = self.scores(call, stop)
        if layer.dense:
            output = layer.attend_all(scores, slice(None), stop)
        else:
            on_the_host(partial(self._choose, call, scores))
            output = layer.attend_lists(scores, 0)
            layer.note(self.place)
        return output.to(queries.dtype).transpose(1, 2)

    def _choose(self, call: AttentionCall, scores: Tensor) -> None:
        """Let the recipes choose, and put their lists where the next graph reads them."""
        if self._idle:
            return
        layer, stop = self.layers[call.layer], self.stop
        layer.slots.fill_(-1)
        for stream in self.streams:
            rows = stream.among
            known = {
                true_scores_of(stop): scores[rows, ..., :stop],
                norms_of(stop): layer.norms[rows, :, :stop],
            }
            inputs: dict[str, Any] = {"values": call.values, **call.inputs}
            inputs = {name: rows_of(x, rows) for name, x in inputs.items()}
            given: Any = (
                call.queries[rows],
                layer.until(stop, rows),
                inputs,
                slice(0, 1),
                known,
                0,
            )
            for one in stream.choose(call.layer, self.prefix[call.layer], *given):
                _put(layer, one, stream.numbers[one.rows.start : one.rows.stop])


def _put(layer: Layer, one: Chosen, numbers: Sequence[int]) -> None:
    """Write what some rows chose to their lists."""
    chosen = one.selection
    if chosen.rest is not None:
        raise InputError(f"{one.indexer} gives pseudo-keys")
    slots, logs = chosen.indices[one.own], chosen.log_weights
    logs = None if logs is None else logs[one.own]
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        layer.put(slice(numbers[0], numbers[-1] + 1), slots, logs)
        return
    for n, number in enumerate(numbers):
        own = slice(n, n + 1)
        layer.put(slice(number, number + 1), slots[own], None if logs is None else logs[own])


@dataclass
class HostedStream(FixedStream):
    """A stream with its own indexes, and its keys and values in the buffers of `home`."""

    home: HostedRows | None = None

    def nbytes(self, layer: int) -> int:
        return self.indices[layer].nbytes

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

    def fork(self, rows: Tensor | None = None) -> HostedStream:
        twin, own = super().fork(rows), {n: index.fork() for n, index in self.indices.items()}
        if rows is not None:
            for index in own.values():
                index.reorder(rows)
        return HostedStream(
            twin.cells, self.context, own, self.seed, numbers=twin.numbers, length=self.length, home=self.home
        )  # fmt: skip

    def lift(self, prefix: Mapping[int, Prefix]) -> None:
        """Take its tails from the buffers, for a whole pass."""
        assert self.home is not None
        for number, layer in self.home.layers.items():
            first = prefix[number].length
            if first < self.length:
                tail = self.among, slice(None), slice(first, self.length)
                self.tails[number] = Cache(layer.keys[tail], layer.values[tail])

    def lower(self, prefix: Mapping[int, Prefix]) -> None:
        """Write its tails back."""
        assert self.home is not None
        for number, layer in self.home.layers.items():
            tail, first = self.tails.pop(number), prefix[number].length
            assert tail.values is not None
            self.length = first + tail.length
            place = self.among, slice(None), slice(first, self.length)
            layer.keys[place], layer.values[place] = tail.keys, tail.values
            layer.norms[place] = norms(tail.keys)


@contextmanager
def whole_pass(streams: Sequence[Stream], prefix: Mapping[int, Prefix]) -> Iterator[None]:
    """Streams as `shared_prefix.forward` takes them: those of hosts with their tails."""
    hosted = [stream for stream in streams if isinstance(stream, HostedStream)]
    for stream in hosted:
        stream.lift(prefix)
    yield
    for stream in hosted:
        stream.lower(prefix)


def hosted_streams(home: HostedRows, streams: Sequence[Stream]) -> Iterator[HostedStream]:
    """Streams of the prefix, in turn, as rows of `home`."""
    length, first = next(iter(home.prefix.values())).length, 0
    for stream in streams:
        numbers = range(first, first + stream.rows)
        indices = {n: index for n, index in stream.indices.items() if not home.layers[n].dense}
        first = numbers.stop
        yield HostedStream(
            stream.cells, stream.context, indices, stream.seed, numbers=numbers, length=length, home=home
        )  # fmt: skip
