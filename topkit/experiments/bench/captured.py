"""A token of `generate` as the replay of one CUDA graph: of recipes, and of dense attention captured alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from topkit.experiments.bench import timing
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.decode.attach import attach
from topkit.experiments.decode.dense_reader import DENSE

SPECS = (
    "sign()",
    "keep(sign(),sink=4,window=16)",
    "keep(refine(sign(),factor=4),sink=4)",
    "exact()",
    "quest()",
    'top_p(quantized(dtype="int4"))',
    "shared(sign())",
    "keep(shared(quantized(dtype='int4')),sink=4)",
    "keep(sign(center=True,hadamard=True),sink=4)",
    "keep(quest(),sink=4,window=16)",
    "moba()",
    "streaming_llm()",
    "random()",
    "sampled(exact())",
)
AGAINST = "dense, captured alike"
# Steps before those that count: the index is built, the cache gets room, a step is captured.
WARM = 4
NOTE = "SmolLM2-135M's shape, random weights, random keys for a prefill"


def captured_cases(session: Session) -> Iterator[Case]:
    """Each context: dense, then every recipe."""
    for length in session.scale.contexts:
        yield length_of(length), partial(_at, session, length)


def what_of(spec: str, length: int) -> str:
    return f"{spec}, a token of generate, batch 1 x {length_of(length)}"


def _at(session: Session, length: int) -> Iterator[Row]:
    model, dense = _model(session, length), None
    for spec in (DENSE, *SPECS):
        measure: Callable[[], Row] = partial(_measured, session, model, spec, length, dense)
        row = session.attempt("decode", what_of(spec, length), OURS, measure)
        dense = dense or row["median"]
        yield row
        session.release()


def _measured(session: Session, model: Any, spec: str, length: int, dense: float | None) -> Row:
    spans = _spans(session, model, spec, length)
    row: Row = {"spans": spans, "dtype": "bfloat16", "batch": 1, "length": length, "note": NOTE}
    if spec == DENSE:
        return row
    row["k"] = session.scale.kept
    if dense is not None:
        row["against"] = (AGAINST, dense)
        row["note"] = f"{float(np.median(spans)) / dense:.2f} x dense; {NOTE}"
    return row


@torch.no_grad()
def _spans(session: Session, model: Any, spec: str, length: int) -> list[float]:
    """Microseconds of steps, one launched behind the other.

    Raises: RuntimeError where one was not captured.
    """
    k = None if spec == DENSE else session.scale.kept
    with attach(model, spec, k, backend=session.backend) as running, running.generating(length):
        cache = _filled(session, model, length)
        ids = torch.zeros(1, 1, dtype=torch.int64, device=session.device)
        place = torch.full_like(ids, length)

        def step() -> None:
            model(input_ids=ids, position_ids=place, past_key_values=cache, use_cache=True)
            place.add_(1)

        for _ in range(WARM):
            step()
        before = running.captured
        spans = timing.streamed(step, session.device)
        if session.cuda and running.captured - before != int(place) - length - WARM:
            raise RuntimeError(f"{running.captured - before} steps were captured, not all")
    return spans


def _model(session: Session, length: int) -> Any:
    s = session.scale
    config = LlamaConfig(
        hidden_size=s.small_hidden, intermediate_size=s.small_hidden * 8 // 3,
        num_hidden_layers=s.small_layers, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
        vocab_size=s.small_vocabulary, max_position_embeddings=length + 1024, eos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    with session.device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _filled(session: Session, model: Any, length: int) -> DynamicCache:
    """A cache of random keys and values."""
    cache: Any = DynamicCache(config=model.config)
    for layer in cache.layers:
        keys, values = (session.drawn(1, 3, length, 64) for _ in range(2))
        layer.update(keys[:, :, :1], values[:, :, :1])
        layer.keys, layer.values = keys, values
    return cache
