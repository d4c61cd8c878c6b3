"""Steps of generate with tokens forced, with and without the capture of a CUDA graph.

In Triton's interpreter there is no graph: each such step runs the model's own forward at fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

import tiny
from device import CUDA, DEVICE
from topkit.experiments.decode.attach import attach

to_the_bit = pytest.mark.skipif(CUDA, reason="a GPU adds in another order each time")
# The step after a prompt of 24 gives the cache room for 32 slots, which 7 more fill; the next moves it.
LENGTH = 24


def tokens(rows: int = 1, length: int = LENGTH, seed: int = 1) -> Tensor:
    return tiny.tokens(rows, length, seed, DEVICE)


def prompt(rows: int = 1, padded: bool = False, length: int = LENGTH) -> dict[str, Any]:
    return tiny.prompt(rows, length, padded, device=DEVICE)


def half(layers: int = 1, kind: str = "qwen3", **changes: Any) -> Any:
    """A tiny model of the widths and the dtype that kernels take."""
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=64)
    model = tiny.tiny(kind, num_hidden_layers=layers, **{**heads, **changes})
    return model.to(DEVICE, torch.float16)


class Forced(LogitsProcessor):
    """Each next token is drawn beforehand, so that no rounding leads two runs apart."""

    said = tokens(8, 200, seed=9)

    def __call__(self, ids: Any, scores: Any) -> Any:
        rows, place = ids.shape
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, self.said[:rows, place, None], 0.0)


class Between(StoppingCriteria):
    """Does something once when so many tokens are there, between two steps; stops nothing."""

    def __init__(self, at: int, act: Callable[[], Any]) -> None:
        self.at, self.act = at, act

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        if ids.shape[1] == self.at:
            self.act()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def between(at: int, act: Callable[[], Any]) -> StoppingCriteriaList:
    return StoppingCriteriaList([Between(at, act)])


def forced(model: Any, given: dict[str, Any], new: int, **how: Any) -> Tensor:
    """Logits [new, B, V] of tokens that are forced."""
    out = model.generate(
        **given,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=LogitsProcessorList([Forced()]),
        **{"do_sample": False, **how},
    )
    return torch.stack(out.logits)


def chosen(model: Any, given: dict[str, Any], new: int, **how: Any) -> Tensor:
    """The sequences that the model prefers, or draws."""
    torch.manual_seed(5)
    return model.generate(**given, max_new_tokens=new, **{"do_sample": False, **how})


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def attached(model: Any, spec: Any = "shared(sign())", k: Any = 5, **how: Any) -> Any:
    return attach(model, spec, k, backend="triton", **how)


def both(model: Any, run: Callable[[Any], Any], **how: Any) -> tuple[Any, Any, int]:
    """What `run` gives with and without a CUDA graph, and how many steps were captured."""
    with attached(model, cuda_graph=False, **how) as eager:
        theirs = run(eager)
    assert eager.captured == 0
    with attached(model, **how) as ours:
        found = run(ours)
    return found, theirs, ours.captured
