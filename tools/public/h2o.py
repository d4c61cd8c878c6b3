"""H2O's cache that drops keys, step by step, of values that are the numbers of their slots."""

from __future__ import annotations

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, numbered

REPOSITORY = "FMInference/H2O"
CODE = {"h2o_hf/utils_real_drop/modify_llama.py": ["H2OKVCache_LayerWise.__call__"]}
NOTE = (
    "A choice is what the newest query attends to: the keys that were left, and its own, which this code counts "
    "in neither size."
)
CASES = (
    Case("h2o(recent=0.5)", "h2o(recent=0.25)", prompt=40, k=16, options={"hh_size": 8, "recent_size": 7}),
    Case("h2o(recent=0.25)", "h2o(recent=0.5)", seed=1, prompt=60, length=90, k=24, options={"hh_size": 18, "recent_size": 5}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("h2o_hf/utils_real_drop/modify_llama.py")
    queries, keys = every_head(tensors)
    cache = code.H2OKVCache_LayerWise(**case.options)
    prompt = case.prompt or case.length
    held = (keys[:, :, :prompt], numbered(keys)[:, :, :prompt])
    held = cache(held, _weights(queries[:, :, :prompt], held[0], prompt))
    slots, attended = numbered(keys), held[1][0, :, :, 0].int()
    for at in range(prompt, case.length):
        held = tuple(
            torch.cat([x, new[:, :, at : at + 1]], 2)
            for x, new in zip(held, (keys, slots), strict=True)
        )
        attended = held[1][0, :, :, 0].int()
        held = cache(held, _weights(queries[:, :, at : at + 1], held[0], 1))
    return [sorted(head) for head in attended.tolist()]


def _weights(queries: Tensor, keys: Tensor, count: int) -> Tensor:
    """Attention weights of the newest queries, each of the keys up to its own."""
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    scores[..., -count:] = scores[..., -count:].masked_fill(later, -torch.inf)
    return scores.softmax(-1)
