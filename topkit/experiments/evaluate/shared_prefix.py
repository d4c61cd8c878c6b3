"""A model run over one shared prefix: dense over the haystack, then all streams as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.evaluate.streams import Past, Stream
from topkit.experiments.model.attention import Attend, switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.finite import require_finite
from topkit.experiments.runs.cells import needs


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

    layers: dict[int, Past]
    needs: frozenset[str]

    def attend(self, call: AttentionCall) -> Tensor:
        inputs = {"prefill_queries": call.queries, "values": call.values, **call.inputs}
        inputs = {name: x for name, x in inputs.items() if name in self.needs}
        length = call.keys.shape[2]
        self.layers[call.layer] = Past(
            call.keys, call.values, length, call.scaling, call.window, inputs
        )
        return call.dense()


@dataclass
class Batch:
    """Each stream attends to the prefix and its own tail; their rows stand one below the other.

    Followers attend to nothing: they append the tokens that the only stream attended to.
    """

    prefix: dict[int, Past]
    streams: Sequence[Stream]
    followers: Sequence[Stream] = ()

    def attend(self, call: AttentionCall) -> Tensor:
        layer, queries, keys, values = call.layer, call.queries, call.keys, call.values
        past, first, outputs = self.prefix[layer], 0, []
        for stream in self.streams:
            rows = slice(first, first + stream.rows)
            inputs = {"values": values[rows]}
            inputs |= {name: _rows(x, rows) for name, x in call.inputs.items()}
            part = queries[rows], keys[rows], values[rows]
            outputs.append(stream.attend(layer, past, *part, inputs))
            first = rows.stop
        for stream in self.followers:
            stream.follow(layer, past, keys, values, {"values": values, **call.inputs})
        return torch.cat(outputs).transpose(1, 2)


def _rows(x: Any, rows: slice) -> Any:
    """Some rows of an input; angles that are the same for all rows have one row."""
    if isinstance(x, tuple):
        return tuple(_rows(part, rows) for part in x)
    return x if x.shape[0] == 1 else x[rows]


def prefill(
    model: PreTrainedModel, ids: Sequence[int], needs: frozenset[str] = frozenset()
) -> dict[int, Past]:
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
    prefix: dict[int, Past],
    streams: Sequence[Stream],
    ids: Tensor,
    last: int,
    followers: Sequence[Stream] = (),
) -> Tensor:
    """Logits [R, last, V] of the last of tokens [R, t], which follow the prefix and the streams' tails.

    R counts the rows of all streams, in their order; see Batch for the followers.
    Raises: InputError for NaN, by layer and head of attention, or in the logits.
    """
    any_layer = next(iter(prefix))
    tail = streams[0].tails.get(any_layer)
    first = prefix[any_layer].length + (0 if tail is None else tail.keys.shape[2])
    places = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
    read = needs([stream.cell for stream in (*streams, *followers)])
    with _attending(model, Batch(prefix, streams, followers).attend, read):
        logits = model(
            input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=last
        ).logits
    if logits.amax().isnan():  # infinity may be intended: a token that must never be generated
        raise InputError("its logits hold NaN, which is made behind the last layer's attention")
    return logits
