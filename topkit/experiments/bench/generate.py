"""Tokens per second of `generate` on a random-weight model of 8B shape, dense and attached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from topkit.experiments.bench import formulas
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.bench.timing import settle
from topkit.experiments.decode.attach import attach
from topkit.indexers.growing import Growing

INDEXER = "shared(sign())"
DENSE = "SDPA"
WHOLE = 32
# Warm-up tokens, not timed: the index is built, kernels are compiled, the cache gets room, a step is
# captured.
WARM = 8
NOTE = "random weights, random keys for a prefill"


class Roomy(DynamicLayer):
    """A cache layer that appends in place, as an attached one does: the dense side is not slowed."""

    _layer_type = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.growing = Growing(), Growing()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None or not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self.growing[0].append(self.keys, key_states)
        self.values = self.growing[1].append(self.values, value_states)
        return self.keys, self.values


class _Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        settle(self.device)
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate_cases(session: Session) -> Iterator[Case]:
    """Each context and batch, at one layer and at a few, which give the time of a layer."""
    s = session.scale
    for length in (s.shortest, *s.lengths[:2]):
        for batch in (1, s.batch):
            what = f"batch {batch} x {length_of(length)}"
            yield what, lambda batch=batch, length=length: _at(session, batch, length)


def _at(session: Session, batch: int, length: int) -> Iterator[Row]:
    what, dense = f"batch {batch} x {length_of(length)}", {}
    for name in (DENSE, OURS):
        row = session.attempt(
            "generate", what, name, partial(_measured, session, batch, length, name, dense)
        )
        dense = dense or row
        yield row
        session.release()


def _measured(session: Session, batch: int, length: int, name: str, dense: Row) -> Row:
    """Tokens a second of the deeper of two models; a layer's time is their difference, which gives a whole model's."""
    s, layers, ours = session.scale, 1 + session.scale.extra_layers, name == OURS
    one, many = (_spans(session, batch, length, n, ours) for n in (1, layers))
    first, last = float(np.median(one)), float(np.median(many))
    whole = batch / (first + (WHOLE - 1) * (last - first) / (layers - 1))
    note = f"{layers} layers; {WHOLE} extrapolated"
    compared = ours and dense["median"] is not None
    if compared:
        note += f", {whole / dense['extrapolated']:.2f} x dense"
    return {
        "spans": [batch / span for span in many],
        "unit": "tokens/s",
        "extrapolated": whole,
        "note": f"{note}; {NOTE}",
        "dtype": "sign" if ours else "bfloat16",
        "batch": batch,
        "length": length,
        "k": s.k if ours else None,
        "against": (DENSE, dense["median"]) if compared else None,
    }


def _spans(session: Session, batch: int, length: int, layers: int, attached: bool) -> list[float]:
    """Seconds between tokens, after the warm-up."""
    s = session.scale
    cache_bytes = layers * formulas.dense(batch, length, s.groups, s.dim).counted
    # A layer is copied once into a buffer an eighth larger; weights and a captured step's own buffers
    # fit into the rest.
    session.require(cache_bytes * (1 + 1 / 8 + 1 / 2 / layers) + (layers + 2) * 2**29)
    model = _model(session, layers, length)
    cache = _filled(session, model, batch, length, attached)
    # Every token of the context, though all but the last stand in the cache.
    ids = torch.randint(s.vocabulary, (batch, length + 1), device=session.device)
    clock = _Clock(session.device)
    with torch.no_grad(), _attention(session, model, attached):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=s.tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return np.diff(clock.times)[WARM:].tolist()


def _attention(session: Session, model: Any, attached: bool) -> AbstractContextManager[Any]:
    if attached:
        return attach(model, INDEXER, k=session.scale.k, backend=session.backend)
    # Without cuDNN, which would make a plan for every new length.
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends)


def _model(session: Session, layers: int, length: int) -> Any:
    s = session.scale
    config = LlamaConfig(
        hidden_size=s.hidden, intermediate_size=s.ffn, num_hidden_layers=layers,
        num_attention_heads=s.heads, num_key_value_heads=s.groups, head_dim=s.dim,
        vocab_size=s.vocabulary, max_position_embeddings=length + s.tokens + 1, eos_token_id=None,
    )  # fmt: skip
    with session.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def _filled(session: Session, model: Any, batch: int, length: int, attached: bool) -> DynamicCache:
    """A cache of random keys and values."""
    s, cache = session.scale, DynamicCache(config=model.config)
    layers: list[Any] = [*cache.layers] if attached else [Roomy() for _ in cache.layers]
    cache.layers = layers
    for layer in layers:
        keys, values = (session.drawn(batch, s.groups, length, s.dim) for _ in range(2))
        layer.update(keys[:, :, :1], values[:, :, :1])
        layer.keys, layer.values = keys, values
    return cache
