"""A model run over one shared prefix: dense over the haystack, then all streams as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from topkit.errors import InputError
from topkit.experiments.evaluate.streams import Past, Stream
from topkit.experiments.model.attention import (
    Inputs,
    attending_through,
    attention_modules,
    inputs_of,
)
from topkit.experiments.model.finite import require_finite
from topkit.experiments.model.record import require_plain
from topkit.experiments.runs.cells import needs

NAME = "topkit_rows"


class Attending(Protocol):
    """What stands in for a model's attention; `given`: what its modules were given besides."""

    given: Inputs

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> Tensor:
        """The attention output [B, t, Hq, Dv]."""
        ...


_attending: ContextVar[Attending] = ContextVar("attending")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    require_plain(given)
    return _attending.get().attend(module, query, key, value, mask=mask, **given), None


@contextmanager
def _replaced(
    model: PreTrainedModel, attending: Attending, wanted: frozenset[str]
) -> Iterator[None]:
    """The model attends through `attending`, which is told what indexers want beside q, k and v."""
    token = _attending.set(attending)
    try:
        modules = attention_modules(model) if wanted & {"hidden", "latent", "rope"} else []
        with inputs_of(modules) as attending.given, attending_through(model, NAME, _attention):
            yield
    finally:
        _attending.reset(token)


@dataclass
class Prefilling:
    """Dense attention that keeps each layer's keys and values."""

    layers: dict[int, Past]
    wanted: frozenset[str]
    given: Inputs = field(default_factory=dict)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> Tensor:
        scaling = given.pop("scaling", None)
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        mask, window = given.pop("mask"), given.get("sliding_window")
        layer = _taking_in(module, query, key, value)
        inputs = {"prefill_queries": query, "values": value, **self.given.get(layer, {})}
        inputs = {name: x for name, x in inputs.items() if name in self.wanted}
        self.layers[layer] = Past(key, value, key.shape[2], scaling, window, inputs)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **given)[0]


@dataclass
class Together:
    """Each stream attends to the prefix and its own tail; their rows stand one below the other.

    Followers attend to nothing: they take in what the one stream there is attended to.
    """

    prefix: dict[int, Past]
    streams: Sequence[Stream]
    followers: Sequence[Stream] = ()
    given: Inputs = field(default_factory=dict)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> Tensor:
        layer, first, outputs = _taking_in(module, query, key, value), 0, []
        past = self.prefix[layer]
        for stream in self.streams:
            rows = slice(first, first + stream.rows)
            inputs = {"values": value[rows]}
            inputs |= {name: _rows(x, rows) for name, x in self.given.get(layer, {}).items()}
            outputs.append(stream.attend(layer, past, query[rows], key[rows], value[rows], inputs))
            first = rows.stop
        for stream in self.followers:
            inputs = {"values": value, **self.given.get(layer, {})}
            stream.follow(layer, past, key, value, inputs)
        return torch.cat(outputs).transpose(1, 2)


def _rows(given: Any, rows: slice) -> Any:
    """Some rows of an input; angles may be alike in all, and have one row then."""
    if isinstance(given, tuple):
        return tuple(_rows(x, rows) for x in given)
    return given if given.shape[0] == 1 else given[rows]


def _taking_in(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> int:
    """The layer whose new tokens these are, once they are found finite."""
    layer = getattr(module, "layer_idx", None)
    if layer is None or not getattr(module, "is_causal", True):
        raise InputError(f"{type(module).__name__} is not a decoder's causal self-attention")
    require_finite(f"layer {layer}", {"queries": query, "keys": key, "values": value})
    return layer


def prefill(
    model: PreTrainedModel, ids: Sequence[int], wanted: frozenset[str] = frozenset()
) -> dict[int, Past]:
    """Run the model over a prefix and keep what each layer's attention saw.

    wanted: the inputs that indexers will ask for.
    """
    seen = Prefilling({}, wanted)
    with _replaced(model, seen, wanted):
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
    Raises: InputError for NaN, by layer and head of attention, or in the logits.
    """
    any_layer = next(iter(prefix))
    tail = streams[0].tails.get(any_layer)
    first = prefix[any_layer].length + (0 if tail is None else tail.keys.shape[2])
    places = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
    wanted = needs([stream.cell for stream in (*streams, *followers)])
    with _replaced(model, Together(prefix, streams, followers), wanted):
        logits = model(
            input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=last
        ).logits
    if logits.amax().isnan():  # infinity may be meant: a token that is never to be said
        raise InputError("its logits hold NaN, which is made behind the last layer's attention")
    return logits
