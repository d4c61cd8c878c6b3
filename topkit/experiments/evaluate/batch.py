"""Streams as one batch: in each layer, what all their rows select is attended to at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.decode.driver import piece
from topkit.experiments.evaluate.lists import Chosen, Lists, require_choices, stacked
from topkit.experiments.evaluate.shared_cache import SharedCache
from topkit.experiments.evaluate.streams import Prefix, Stream, joined, rows_of
from topkit.experiments.model.attention_call import AttentionCall
from topkit.indexers.base import Cache
from topkit.indexers.exact import norms_of, true_scores_of
from topkit.kernels.gather_attention import PLAIN, Softmax


@dataclass(frozen=True)
class Asked:
    """Some queries of all rows, or of some, in a layer: those from `first` on.

    Shapes: queries [B, Hq, n, D], scores [B, Hq, n, T], their keys' norms [B, Hk, T], stops [n].
    """

    layer: int
    scaling: float
    first: int
    queries: Tensor
    scores: Tensor
    norms: Tensor
    stops: Tensor
    cache: SharedCache
    softmax: Softmax = PLAIN

    def of(self, rows: slice | Tensor, place: slice | None = None) -> Asked:
        """Those of some rows, and of some of the queries."""
        place = place or slice(0, len(self.stops))
        every = place == slice(0, len(self.stops))
        queries, scores = self.queries[rows], self.scores[rows]
        return replace(
            self,
            first=self.first + place.start,
            queries=queries if every else queries[:, :, place],
            scores=scores if every else scores[:, :, place],
            norms=self.norms[rows],
            stops=self.stops[place],
            cache=self.cache.of(rows),
        )


# Called with queries, what they selected, and the output [B, Hq, n, Dv] over it, in float32.
Watch = Callable[[Asked, Lists, Tensor], None]


@dataclass(frozen=True)
class Batch:
    """Streams whose rows stand one below the other; each row attends to the prefix and its own tail.

    Followers attend to nothing: they append the tokens that the only stream attended to.
    """

    prefix: Mapping[int, Prefix]
    streams: Sequence[Stream]
    followers: Sequence[Stream] = ()
    watch: Watch | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        layer, queries, prefix = call.layer, call.queries, self.prefix[call.layer]
        cache = self._appended(call)
        inputs = {"values": call.values, **call.inputs}
        if call.indices is not None:
            inputs["native"] = call.indices
        length, count = cache.length, queries.shape[2]
        norms, stops = (
            cache.norms(),
            torch.arange(length - count, length, device=queries.device) + 1,
        )
        outputs, width = [], piece(queries, length)
        for first in range(0, count, width):
            place = slice(first, min(first + width, count))
            part = queries[:, :, place]
            asked = Asked(
                layer,
                prefix.scaling,
                first,
                part,
                cache.scores(part),
                norms,
                stops[place],
                cache,
                prefix.softmax,
            )
            dense = prefix.dense(length)
            outputs.append(
                dense_output(asked, prefix) if dense else self._sparse(asked, prefix, inputs)
            )
        for stream in self.followers:
            copies = stream.rows // len(queries)
            new = Cache(call.keys.repeat(copies, 1, 1, 1), call.values.repeat(copies, 1, 1, 1))
            stream.follow(layer, prefix, new, {n: _repeated(x, copies) for n, x in inputs.items()})
            own = self.streams[0].index_keys.get(layer)
            if own is not None and stream.reads_lists:
                stream.index_keys[layer] = own.repeat(copies, 1, 1)
        return torch.cat(outputs, 2).to(queries.dtype).transpose(1, 2)

    def _sparse(self, asked: Asked, prefix: Prefix, inputs: dict[str, Any]) -> Tensor:
        """The output [B, Hq, n, Dv] of all streams."""
        chosen, first = list[Chosen](), 0
        output = asked.scores.new_empty(*asked.queries.shape[:3], inputs["values"].shape[3])
        for stream in self.streams:
            rows = slice(first, first + stream.rows)
            own = asked.of(rows)
            if asked.layer not in stream.indices:
                # What is read for all streams is read as the model itself does.
                lists = inputs.get("native") if self.followers else None
                output[rows] = dense_output(own, prefix, lists)
            else:
                chosen += self._chosen(stream, prefix, own, rows, inputs)
            first = rows.stop
        stacks = stacked(chosen, asked.queries.shape[1], asked.cache.length)
        require_choices(chosen, stacks, asked.stops)
        for lists in stacks:
            own = asked.of(lists.rows, lists.place)
            sparse = lists.attend(own.scores, own.cache, own.scaling, own.softmax)
            output[lists.rows, :, lists.place] = sparse
            if self.watch is not None:
                self.watch(own, lists, sparse)
        return output

    def _chosen(
        self, stream: Stream, prefix: Prefix, own: Asked, rows: slice, inputs: dict[str, Any]
    ) -> Iterator[Chosen]:
        """What a stream selects, whose rows are these of the batch."""
        length, place = own.cache.length, slice(own.first, own.first + len(own.stops))
        known = {true_scores_of(length): own.scores, norms_of(length): own.norms}
        given = {name: rows_of(x, rows) for name, x in inputs.items()}
        return stream.choose(
            own.layer, prefix, own.queries, own.cache, given, place, known, rows.start
        )

    def _appended(self, call: AttentionCall) -> SharedCache:
        """The prefix, and behind it the tails of all rows with the call's keys and values."""
        layer, new = call.layer, Cache(call.keys, call.values)
        olds = [stream.tails[layer] for stream in self.streams if layer in stream.tails]
        tail = joined([joined(olds, 0), new], 2) if olds else new
        first = 0
        for stream in self.streams:
            rows = slice(first, first + stream.rows)
            stream.tails[layer] = Cache(tail.keys[rows], tail.values[rows])  # type: ignore[index]
            first = rows.stop
        return self.prefix[layer].then(tail)


def dense_output(asked: Asked, prefix: Prefix, lists: Tensor | None = None) -> Tensor:
    """Attention [B, Hq, n, Dv] over all that the queries see, or what of it the lists [B, t, k] name."""
    slots = torch.arange(asked.cache.length, device=asked.scores.device)
    hidden = slots >= asked.stops[:, None]
    if prefix.window is not None:
        hidden |= slots < asked.stops[:, None] - prefix.window
    if lists is not None:
        own, length = lists[:, asked.first : asked.first + len(asked.stops)].long(), len(slots)
        listed = hidden.new_zeros(*own.shape[:2], length + 1)
        listed = listed.scatter_(-1, own.where(own >= 0, length), True)[..., :length]
        hidden = hidden | ~listed
        hidden = hidden[:, None]
    logits = asked.softmax.capped(asked.scaling * asked.scores)
    logits = logits.masked_fill_(hidden, float("-inf"))
    return asked.cache.weigh(asked.softmax.weights_of_seen(logits))


def _repeated(x: Any, copies: int) -> Any:
    """All rows of an input, several times one after the other; but for angles that have one row."""
    if isinstance(x, tuple):
        return tuple(_repeated(part, copies) for part in x)
    return x if x.shape[0] == 1 else x.repeat(copies, *[1] * (x.ndim - 1))
