"""Ada-KV's split of a budget in kvpress, of scores that are the newest query's attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "NVIDIA/kvpress"
CODE = {"kvpress/presses/adakv_press.py": ["AdaKVPress.compress"]}
NOTE = "The scores that it splits are softmax weights: those of adakv(exact()), of each query head."
CASES = (
    Case("adakv(part=0.25, safeguard=0.75)", "adakv(part=0.25, safeguard=0.25)", k=64, options={"ratio": 0.75, "alpha": 0.75}),
    Case("adakv(part=0.5, safeguard=0.0)", "adakv(part=0.5, safeguard=1.0)", seed=1, k=80, length=80, options={"ratio": 0.5, "alpha": 0.0}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    doors = ("kvpress", "kvpress.presses")
    code = checkout.module("kvpress.presses.adakv_press", doors)
    scorer: Any = checkout.module("kvpress.presses.scorer_press", doors).ScorerPress

    class Weights(scorer):
        def score(self, *given: Any) -> Tensor:
            queries, keys = every_head(tensors)
            return (queries[:, :, -1:] @ keys.mT * case.width**-0.5).softmax(-1)[:, :, 0]

    config = SimpleNamespace(_attn_implementation="sdpa")
    module = SimpleNamespace(config=config, masked_key_indices=None)
    press = code.AdaKVPress(Weights(case.options["ratio"]), alpha_safeguard=case.options["alpha"])
    _, keys = every_head(tensors)
    press.compress(module, None, keys, keys, None, {})
    kept = torch.ones(keys.shape[1:3], dtype=torch.bool)
    assert module.masked_key_indices is not None
    kept[module.masked_key_indices[1:]] = False
    return slots_of(kept)
