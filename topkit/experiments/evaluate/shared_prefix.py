"""A model run over one shared prefix: dense over the haystack, then all streams as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.evaluate.batch import Batch, Watch
from topkit.experiments.evaluate.own_indexer import PrefixIndex, RowsIndex
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.model.attention import Attend, switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.finite import require_finite
from topkit.experiments.model.own_indexer import choosing
from topkit.experiments.runs.cells import needs
from topkit.indexers.base import Cache


@contextmanager
def _attending(model: PreTrainedModel, attend: Attend, needs: frozenset[str]) -> Iterator[None]:
    """The model attends through `attend`; each call is checked, and brings the inputs that are needed."""

    def checked(call: AttentionCall) -> Tensor:
        call.require_plain(indices=True, softmax=True)
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
        listed, heads = call.indices is not None, call.queries.shape[1]
        softmax = call.softmax.detached()
        self.layers[call.layer] = Prefix(
            cache, call.scaling, call.window, inputs, heads, listed, softmax=softmax
        )
        return call.dense()


def prefill(
    model: PreTrainedModel,
    ids: Sequence[int],
    needs: frozenset[str] = frozenset(),
    question: int = 0,
) -> dict[int, Prefix]:
    """Run the model over a prefix and keep what each layer's attention saw, by layer.

    It attends as it does by itself: to all keys, or to those that its own indexer lists. `needs`: the inputs
    that indexers will read; question: how many tokens of a prompt come behind.
    Raises: InputError for NaN, by layer and head.
    """
    prefill, index = Prefill({}, needs), PrefixIndex(question)
    with choosing(model, index.choose), _attending(model, prefill.attend, needs):
        model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    for layer, keys in index.keys.items():
        prefill.layers[layer].index_keys = keys
    return prefill.layers


def forward(
    model: PreTrainedModel,
    prefix: Mapping[int, Prefix],
    streams: Sequence[Stream],
    ids: Tensor,
    last: int,
    followers: Sequence[Stream] = (),
    watch: Watch | None = None,
    prompt: int = 0,
) -> Tensor:
    """Logits [R, last, V] of the last of tokens [R, t], which follow the prefix and the streams' tails.

    R counts the rows of all streams, in their order; see Batch for the followers and `watch`, and
    RowsIndex for `prompt`.
    Raises: InputError for NaN, by layer and head of attention, or in the logits.
    """
    reading = RowsIndex(prefix, streams, prompt, reading=bool(followers))
    batch = Batch(prefix, streams, followers, watch)
    return passed(model, batch, [*streams, *followers], reading, ids, last)


def passed(
    model: PreTrainedModel,
    batch: Batch,
    reading: Sequence[Stream],
    own: RowsIndex,
    ids: Tensor,
    last: int,
) -> Tensor:
    """As `forward`, of a batch as it stands; `reading`: the streams whose recipes read inputs."""
    prefix, tails = batch.prefix, batch.streams[0].tails
    any_layer = next(iter(prefix))
    tail = tails.get(any_layer)
    first = prefix[any_layer].length + (0 if tail is None else tail.length)
    places = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
    read = needs([stream.cells[0] for stream in reading])
    listed = any(one.listed for one in prefix.values())
    with (
        choosing(model, own.choose) if listed else nullcontext(),
        _attending(model, batch.attend, read),
    ):
        logits = model(
            input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=last
        ).logits
    if logits.amax().isnan():  # infinity may be intended: a token that must never be generated
        raise InputError("its logits hold NaN, which is made behind the last layer's attention")
    return logits
