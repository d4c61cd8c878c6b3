"""The attention of some layers and nothing else, decoding through indexes as `attach` drives them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from topkit.experiments.decode.cache import index_over
from topkit.experiments.decode.cuda_graph import CapturedDecoding
from topkit.experiments.decode.driver import Driver
from topkit.experiments.decode.layer_index import CacheOwner
from topkit.experiments.decode.reader import Reader
from topkit.experiments.model.attention import AttentionCall
from topkit.indexers.base import Cache, Index, Selection


@dataclass(frozen=True)
class Layer:
    """A layer's cache, the newest token last, and its module's inputs for that token.

    Shapes: queries [B, Hq, 1, D]; keys, values [B, Hk, T, D]; `inputs` are of the newest token; index,
    of all keys but the newest.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    index: Index
    inputs: Mapping[str, Any] = field(default_factory=dict)


class Place(nn.Module):
    """The attention module of a layer, of which only the number is read."""

    is_causal = True

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number


class Decoding(nn.Module):
    """Steps of `generate` over layers of one model: each token brings the newest key and value again.

    The cache, its room, the CUDA graph that holds a step, and what shows of it afterwards are `attach`'s
    own (decode/cache.py, decode/cuda_graph.py). A graph repeats the layers `turns` times, so that the
    host, between two of them, is ahead of a GPU; a step that is run twice writes the same twice.
    """

    def __init__(
        self, layers: Sequence[Layer], reader: Reader, scaling: float, turns: int = 1
    ) -> None:
        super().__init__()
        self.eval()
        self.reader, self.scaling, self.turns = reader, scaling, turns
        self.tokens = [
            (x.queries, x.keys[:, :, -1:].clone(), x.values[:, :, -1:].clone(), x.inputs)
            for x in layers
        ]
        self.ids = torch.zeros(
            len(layers[0].keys), 1, dtype=torch.int64, device=layers[0].keys.device
        )
        self.places = [Place(number) for number in range(len(layers))]
        self.owner, self.cache = CacheOwner(), DynamicCache()
        self.layers: list[Any] = [self._indexed(n, layer) for n, layer in enumerate(layers)]
        self.cache.layers = self.layers
        numbers = [*range(len(layers))]
        self.captured = CapturedDecoding(self.owner, numbers, self, self.forward, reader)
        with torch.no_grad():
            self._replay()  # the model itself does the first of a run of steps

    def forward(self, **_: Any) -> BaseModelOutput:
        """The outputs [layers, B, 1, Hq, D] of one step at fixed shapes."""
        outputs: list[Tensor] = []
        for _turn in range(self.turns):
            outputs = []
            for number, layer in enumerate(self.layers):
                queries, new_key, new_value, inputs = self.tokens[number]
                keys, values = layer.update(new_key, new_value)
                call = AttentionCall(
                    self.places[number], queries, keys, values, None, self.scaling, None, {}, {}
                )
                outputs.append(self.captured.attend(call, inputs))
        return BaseModelOutput(last_hidden_state=torch.stack(outputs))  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self) -> Tensor:
        """The outputs of the next step, by the replay of a graph on a GPU.

        Raises: UserWarning where attach would warn that a step cannot be captured.
        """
        output = self._replay()
        if output is None:
            raise RuntimeError("attach has no room for a step at fixed shapes")
        return output.last_hidden_state

    @torch.no_grad()
    def select(self, number: int) -> Selection:
        """What the index of a layer chooses among the keys that its cache shows, outside of a graph."""
        queries, _, _, inputs = self.tokens[number]
        index = self.layers[number].layer_index.index
        return index.select(queries, self._k(number), self._driver(number).step(inputs))

    def _replay(self) -> Any:
        step = {"input_ids": self.ids, "position_ids": self.ids, "past_key_values": self.cache}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="steps of ")
            return self.captured.step(step, 0)

    def _indexed(self, number: int, layer: Layer) -> DynamicLayer:
        """A cache layer, its index beside it, with the newest token appended: both then have room."""
        own = DynamicLayer()
        own.update(layer.keys[:, :, :1], layer.values[:, :, :1])
        own.keys, own.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
        over = index_over(own, self.owner)
        over.index = layer.index
        _, new_key, new_value, inputs = self.tokens[number]
        whole = Cache(*own.update(new_key, new_value))
        self._driver(number).append(layer.index, whole, inputs)
        over.valid = layer.keys.shape[2]
        return own

    def _k(self, number: int) -> int:
        return self.reader.budget.at(self.layers[number].get_seq_length())

    def _driver(self, number: int) -> Driver:
        reader, groups = self.reader, self.tokens[number][1].shape[1]
        how = {"backend": reader.backend, "ordered": False}
        return Driver(reader.indexer, number, self.scaling, groups, reader.seed, None, **how)
