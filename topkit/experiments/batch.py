"""A model run over one shared prefix: dense over the haystack, then all streams as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from topkit.errors import InputError
from topkit.experiments.decoding import Past, Stream

NAME = "topkit_rows"


class Attending(Protocol):
    """What stands in for a model's attention."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> Tensor:
        """The attention output [B, t, Hq, Dv]."""
        ...


_attending: ContextVar[Attending] = ContextVar("attending")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    return _attending.get().attend(module, query, key, value, mask=mask, **given), None


@contextmanager
def _replaced(model: PreTrainedModel, attending: Attending) -> Iterator[None]:
    """The model attends through `attending` in here, and as before afterwards, whatever happens."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    training, token = model.training, _attending.set(attending)
    try:
        model.eval()
        model.set_attn_implementation(NAME)
        with torch.no_grad():
            yield
    finally:
        _attending.reset(token)
        model.train(training)
        for config, name in before:
            config._attn_implementation = name


@dataclass
class Prefilling:
    """Dense attention that keeps each layer's keys and values."""

    layers: dict[int, Past]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> Tensor:
        scaling = given.pop("scaling", None)
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        mask, window = given.pop("mask"), given.get("sliding_window")
        self.layers[_layer(module)] = Past(key, value, key.shape[2], scaling, window)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **given)[0]


@dataclass
class Together:
    """Each stream attends to the prefix and its own tail; their rows stand one below the other.

    Followers attend to nothing: they take in what the one stream there is attended to.
    """

    prefix: dict[int, Past]
    streams: Sequence[Stream]
    followers: Sequence[Stream] = ()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> Tensor:
        layer, first, outputs = _layer(module), 0, []
        past = self.prefix[layer]
        for stream in self.streams:
            rows = slice(first, first + stream.rows)
            outputs.append(stream.attend(layer, past, query[rows], key[rows], value[rows], {}))
            first = rows.stop
        for stream in self.followers:
            stream.follow(layer, past, key, value, {})
        return torch.cat(outputs).transpose(1, 2)


def _layer(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None or not getattr(module, "is_causal", True):
        raise InputError(f"{type(module).__name__} is not a decoder's causal self-attention")
    return layer


def prefill(model: PreTrainedModel, ids: Sequence[int]) -> dict[int, Past]:
    """Run the model over a prefix and keep what each layer's attention saw."""
    seen = Prefilling({})
    with _replaced(model, seen):
        model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return seen.layers


def forward(
    model: PreTrainedModel,
    prefix: dict[int, Past],
    streams: Sequence[Stream],
    ids: Tensor,
    last: int,
    followers: Sequence[Stream] = (),
) -> Tensor:
    """Logits [R, last, V] of the last of tokens [R, t], which follow the prefix and the streams' tails.

    R counts the rows of all streams, in their order; see Together for the followers.
    """
    any_layer = next(iter(prefix))
    tail = streams[0].tails.get(any_layer)
    first = prefix[any_layer].length + (0 if tail is None else tail.keys.shape[2])
    places = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
    with _replaced(model, Together(prefix, streams, followers)):
        return model(
            input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=last
        ).logits
