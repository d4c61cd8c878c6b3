"""Training through Top-k attention: a model's own attention, switched while it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.padding import Padding
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.record import NOT_SWITCHED
from topkit.kernels.topk_attention import keys_kept, most_kept, topk_attention

# Tokens of the pass that shows whether a model can be trained so.
PROBED = 8


class TopkAttention:
    """What a layer attends through: each query's ceil(ratio x visible) best keys, at least `least`."""

    def __init__(self, ratio: Fraction, least: int = 1) -> None:
        self.ratio, self.least = ratio, least
        self.padding = Padding()
        self.layers: set[int] = set()

    def __call__(self, call: AttentionCall) -> Tensor:
        """The output [B, t, Hq, Dv].

        Raises: InputError for attention that is other than softmax(q k) v of all earlier keys.
        """
        call.require_plain()
        if call.window is not None:
            raise InputError(f"layer {call.layer} has a sliding window")
        if call.options.get("dropout"):
            raise InputError("its attention has dropout")
        count, length = call.queries.shape[2], call.keys.shape[2]
        start = self.padding.start(call.mask, None, count, length)
        self.layers.add(call.layer)
        device = call.queries.device
        kept = keys_kept(self.ratio, count, length, start=start, least=self.least, device=device)
        # Norms may have left queries and keys in float32 where values are in the dtype of autocast.
        q, k = (x.to(call.values.dtype) for x in (call.queries, call.keys))
        most = most_kept(self.ratio, length, least=self.least)
        out = topk_attention(q, k, call.values, kept, scaling=call.scaling, start=start, most=most)
        return out.transpose(1, 2).contiguous()


@contextmanager
def training_attention(model: Any, ratio: Fraction | None, least: int = 1) -> Iterator[None]:
    """The model attends to Top-k keys in here, forward and backward; to all where there is no ratio.

    Raises: InputError naming a model whose attention cannot be trained so.
    """
    if ratio is None:
        yield
        return
    require_trainable(model, ratio)
    with switched_attention(model, TopkAttention(ratio, least), evaluation=False):
        yield


def require_trainable(model: Any, ratio: Fraction) -> None:
    """Refuse a model that does not attend through topkit's switch in all of its layers, with the reason.

    Raises: InputError naming the model's class.
    """
    name, attend = type(model).__name__, TopkAttention(ratio)
    config = model.config.get_text_config()
    ids = torch.arange(PROBED, device=model.device)[None] % config.vocab_size
    try:
        with switched_attention(model, attend):
            model(ids, use_cache=False)
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{name} cannot be trained with Top-k attention: {error}") from error
    there = getattr(config, "num_hidden_layers", len(attend.layers))
    if not attend.layers:
        raise InputError(f"{name} cannot be trained with Top-k attention: {NOT_SWITCHED}")
    if len(attend.layers) < there:
        raise InputError(
            f"{name} cannot be trained with Top-k attention: {there - len(attend.layers)} of its {there} layers do "
            "not attend by softmax(q k) v"
        )
