"""A model run over one shared prefix: dense over the haystack, then all streams as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.decode.driver import piece
from topkit.experiments.evaluate.lists import Chosen, Lists, require_choices, stacked
from topkit.experiments.evaluate.shared_cache import SharedCache
from topkit.experiments.evaluate.streams import Prefix, Stream, joined
from topkit.experiments.model.attention import Attend, switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.finite import require_finite
from topkit.experiments.runs.cells import needs
from topkit.indexers.base import Cache
from topkit.indexers.exact import norms_of, true_scores_of


@contextmanager
def _attending(model: PreTrainedModel, attend: Attend, needs: frozenset[str]) -> Iterator[None]:
    """The model attends through `attend`; each call is checked, and brings the inputs that are needed."""

    def checked(call: AttentionCall) -> Tensor:
        call.require_plain()
        tensors = {"queries": call.queries, "keys": call.keys, "values": call.values}
        require_finite(f"layer {call.layer}", tensors)
        return attend(call)

    with switched_attention(model, checked, inputs=bool(needs & {"hidden", "latent", "rope"})):
        yield


@dataclass
class Prefill:
    """Dense attention that keeps each layer's keys and values, and the inputs that are needed."""

    layers: dict[int, Prefix]
    needs: frozenset[str]

    def attend(self, call: AttentionCall) -> Tensor:
        inputs = {"prefill_queries": call.queries, "values": call.values, **call.inputs}
        inputs = {name: x for name, x in inputs.items() if name in self.needs}
        cache = Cache(call.keys.contiguous(), call.values.contiguous())
        self.layers[call.layer] = Prefix(cache, call.scaling, call.window, inputs)
        return call.dense()


@dataclass(frozen=True)
class Attended:
    """What some rows of a batch attended to in a layer, at the queries from `first` on.

    Shapes: queries [B, Hq, n, D], scores [B, Hq, n, T], their keys' norms [B, Hk, T], stops [n], output
    [B, Hq, n, Dv] in float32.
    """

    layer: int
    first: int
    scaling: float
    queries: Tensor
    scores: Tensor
    norms: Tensor
    stops: Tensor
    cache: SharedCache
    lists: Lists
    output: Tensor


Watch = Callable[[Attended], None]


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
        layer, queries = call.layer, call.queries
        prefix, cache = self.prefix[layer], self._appended(call)
        inputs = {"values": call.values, **call.inputs}
        length, count = cache.length, queries.shape[2]
        outputs = []
        width = piece(queries, length)
        for first in range(0, count, width):
            place = slice(first, min(first + width, count))
            part = queries[:, :, place]
            scores = cache.scores(part)
            stops = torch.arange(length - count + 1, length + 1, device=part.device)[place]
            if prefix.dense(length):
                outputs.append(_dense(scores, cache, stops, prefix))
                continue
            outputs.append(self._sparse(layer, part, place, scores, stops, cache, inputs))
        for stream in self.followers:
            copies = stream.rows // len(queries)
            new = Cache(call.keys.repeat(copies, 1, 1, 1), call.values.repeat(copies, 1, 1, 1))
            stream.follow(layer, prefix, new, {n: _repeated(x, copies) for n, x in inputs.items()})
        return torch.cat(outputs, 2).to(queries.dtype).transpose(1, 2)

    def _sparse(
        self,
        layer: int,
        queries: Tensor,
        place: slice,
        scores: Tensor,
        stops: Tensor,
        cache: SharedCache,
        inputs: dict[str, Any],
    ) -> Tensor:
        """The output [B, Hq, n, Dv] of the queries at `place`, of all streams."""
        prefix, chosen, first = self.prefix[layer], list[Chosen](), 0
        output = scores.new_empty(*queries.shape[:3], inputs["values"].shape[3])
        norms = cache.norms()
        for stream in self.streams:
            rows = slice(first, first + stream.rows)
            own = cache.of(rows)
            if layer not in stream.indices:
                output[rows] = _dense(scores[rows], own, stops, prefix)
            else:
                known = {
                    true_scores_of(own.length): scores[rows],
                    norms_of(own.length): norms[rows],
                }
                given = {name: _rows(x, rows) for name, x in inputs.items()}
                chosen += stream.choose(
                    layer, prefix, queries[rows], own, given, place, known, first
                )
            first = rows.stop
        stacks = stacked(chosen, queries.shape[1], cache.length)
        require_choices(chosen, stacks, stops)
        for lists in stacks:
            rows, at = lists.rows, lists.place
            own, own_scores = cache.of(rows), scores[rows][:, :, at]
            sparse = lists.attend(own_scores, own, prefix.scaling)
            output[rows, :, at] = sparse
            if self.watch is not None:
                self.watch(
                    Attended(
                        layer,
                        place.start + at.start,
                        prefix.scaling,
                        queries[rows][:, :, at],
                        own_scores,
                        norms[rows],
                        stops[at],
                        own,
                        lists,
                        sparse,
                    )
                )
        return output

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


def _dense(scores: Tensor, cache: SharedCache, stops: Tensor, prefix: Prefix) -> Tensor:
    """Attention [B, Hq, n, Dv] over all that the queries see, by their scores [B, Hq, n, T]."""
    slots = torch.arange(cache.length, device=scores.device)
    hidden = slots >= stops[:, None]
    if prefix.window is not None:
        hidden |= slots < stops[:, None] - prefix.window
    logits = (prefix.scaling * scores).masked_fill_(hidden, float("-inf"))
    return cache.weigh(logits.softmax(-1))


def _rows(x: Any, rows: slice) -> Any:
    """Some rows of an input; angles that are the same for all rows have one row."""
    if isinstance(x, tuple):
        return tuple(_rows(part, rows) for part in x)
    return x if x.shape[0] == 1 else x[rows]


def _repeated(x: Any, copies: int) -> Any:
    """All rows of an input, several times one after the other; but for angles that have one row."""
    if isinstance(x, tuple):
        return tuple(_repeated(part, copies) for part in x)
    return x if x.shape[0] == 1 else x.repeat(copies, *[1] * (x.ndim - 1))


def prefill(
    model: PreTrainedModel, ids: Sequence[int], needs: frozenset[str] = frozenset()
) -> dict[int, Prefix]:
    """Run the model over a prefix and keep what each layer's attention saw, by layer.

    `needs`: the inputs that indexers will read.
    Raises: InputError for NaN, by layer and head.
    """
    prefill = Prefill({}, needs)
    with _attending(model, prefill.attend, needs):
        model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return prefill.layers


def forward(
    model: PreTrainedModel,
    prefix: Mapping[int, Prefix],
    streams: Sequence[Stream],
    ids: Tensor,
    last: int,
    followers: Sequence[Stream] = (),
    watch: Watch | None = None,
) -> Tensor:
    """Logits [R, last, V] of the last of tokens [R, t], which follow the prefix and the streams' tails.

    R counts the rows of all streams, in their order; see Batch for the followers and `watch`.
    Raises: InputError for NaN, by layer and head of attention, or in the logits.
    """
    any_layer = next(iter(prefix))
    tail = streams[0].tails.get(any_layer)
    first = prefix[any_layer].length + (0 if tail is None else tail.length)
    places = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
    read = needs([stream.cells[0] for stream in (*streams, *followers)])
    with _attending(model, Batch(prefix, streams, followers, watch).attend, read):
        logits = model(
            input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=last
        ).logits
    if logits.amax().isnan():  # infinity may be intended: a token that must never be generated
        raise InputError("its logits hold NaN, which is made behind the last layer's attention")
    return logits
