"""A layer's attention in a call of the model: dense up to the end of the prompt, by the indexer behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.cache import index_over
from topkit.experiments.decode.layer_index import CacheOwner, LayerIndex
from topkit.experiments.decode.padding import Padding
from topkit.experiments.decode.prompt import Prompt
from topkit.experiments.decode.reader import Call, Reader
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.finite import require_finite


class LayerAttention:
    """Attention of layers through an indexer; `selected`: whether any query behind a prompt has come."""

    def __init__(self, reader: Reader, owner: CacheOwner, prompt: Prompt, shadow: bool) -> None:
        self.reader, self.owner, self.prompt, self.shadow = reader, owner, prompt, shadow
        self.padding, self.selected = Padding(), False

    def attend(self, call: AttentionCall, inputs: dict[str, Any]) -> Tensor:
        """The output [B, t, Hq, Dv] of a layer's attention."""
        batch, _, count, _ = call.queries.shape
        length = call.keys.shape[2]
        before = length - count
        layer = self._layer_index(call, before)
        prompt = self.prompt.tokens(before, count)
        inside = self.prompt.rows(before, count, batch)
        now = self._call(call, before, inputs)
        with torch.no_grad():
            self.reader.take(layer, now, prompt)
        dense = call.dense() if prompt or self.shadow or inside is not None else None
        output = dense
        if prompt < count:
            self.selected = True
            own = None if inside is None else inside[:, prompt:].to(call.queries.device)
            sparse = self.reader.read(layer, now, prompt, own, not self.shadow)
            if sparse is not None:
                output = _joined(dense, sparse.transpose(1, 2), prompt, own)
        layer.valid, layer.start = length, now.start
        assert output is not None
        return output.contiguous()

    def _call(self, call: AttentionCall, before: int, inputs: dict[str, Any]) -> Call:
        """The call as a `Reader` takes it, behind `before` slots. Raises: InputError for NaN or infinity."""
        count, length = call.queries.shape[2], call.keys.shape[2]
        positions = call.options.get("position_ids")
        start = self.padding.start(call.mask, positions, count, length)
        new = {"keys": call.keys[:, :, before:], "values": call.values[:, :, before:]}
        if self.reader.backend != "triton":
            tensors = {"queries": call.queries, **new}
            require_finite(f"layer {call.layer}", tensors, start, before)
        inputs |= {"values": new["values"]}
        tensors = (call.queries, call.keys, call.values)
        return Call(call.layer, *tensors, call.scaling, start, inputs, call.softmax)

    def _layer_index(self, call: AttentionCall, before: int) -> LayerIndex:
        """The index over the layer's cache, which had `before` slots before the call."""
        cache, number = call.cache, call.layer
        if cache is None:  # without a cache every call brings all tokens
            return LayerIndex(self.owner)
        if number >= len(getattr(cache, "layers", ())):
            raise InputError(f"attach follows a DynamicCache; got a {type(cache).__name__}")
        layer = index_over(cache.layers[number], self.owner)
        if layer.index is not None and layer.valid != before:
            raise InputError(
                f"the index of layer {number} has {layer.valid} slots and its cache {before}: the "
                "cache was changed in a way that attach does not follow"
            )
        return layer


def _joined(dense: Tensor | None, sparse: Tensor, prompt: int, inside: Tensor | None) -> Tensor:
    """Dense outputs [B, t, Hq, Dv] of the prompt's tokens, and sparse ones of those behind it."""
    if dense is None:
        return sparse
    if inside is not None:
        sparse = torch.where(inside[..., None, None], dense[:, prompt:], sparse)
    return torch.cat([dense[:, :prompt], sparse], 1)
