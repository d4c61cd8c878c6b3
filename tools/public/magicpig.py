"""MagicPIG's reference cache, of planes that are topkit's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout
from topkit.indexers import lsh
from topkit.indexers.base import Step
from topkit.indexers.noise import salt_of

REPOSITORY = "Infini-AI-Lab/MagicPIG"
CODE = {"evaluations/RULER/pred/cache_ref.py": ["SimCache.select_kv_cache", "SimCache.update"]}
NOTE = (
    "The planes are those that topkit draws by its seed. The newest key is not in the window of this code, "
    "which keeps it beside that."
)
_LAYER = 1  # of layer 0 all keys are kept
CASES = (
    Case("magicpig(bits=3, tables=12, sink=4, window=9)", "magicpig(bits=3, tables=8, sink=4, window=9)",
         length=97, k=97, options={"K": 3, "L": 12, "window": 8, "sink": 4}),
    Case("magicpig(bits=5, tables=40, sink=2, window=5)", "magicpig(bits=6, tables=40, sink=2, window=5)",
         seed=1, length=161, width=32, k=161, options={"K": 5, "L": 40, "window": 4, "sink": 2}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("evaluations/RULER/pred/cache_ref.py")
    (heads, groups), (bits, tables, window, sink) = case.heads, case.options.values()
    cache = code.SimCache(
        bits, tables, window=window, num_qh=heads, num_kh=groups, head_dim=case.width,
        num_layers=2, device="cpu", dtype=torch.float32,
    )  # fmt: skip
    salt = salt_of(Step(layer=0, seed=case.seed), lsh._PLANES)
    planes = lsh._planes(case.seed, salt, case.width, bits * tables, torch.device("cpu"))
    cache.hash_matrix = [planes.float().expand(1, groups, -1, -1)]
    keys, prompt = tensors["keys"], case.length - 1
    for layer in range(_LAYER + 1):
        cache.update(keys[:, :, :prompt], keys[:, :, :prompt], None, layer)
        cache.select_kv_cache(sink, layer, window)
    weighed: list[Tensor] = []

    def softmax(scores: Tensor, **how: Any) -> Tensor:
        weighed.append(scores)
        return torch.softmax(scores, **how)

    code.F = SimpleNamespace(softmax=softmax)
    cache.update(keys[:, :, prompt:], keys[:, :, prompt:], tensors["queries"][:, :, -1:], _LAYER)
    seen = (weighed[0][0, :, 0] > -torch.inf).tolist()
    # It has sinks, window and newest key first.
    slots = [*range(sink), *range(case.length - 1 - window, case.length)]
    slots += range(sink, case.length - 1 - window)
    return [sorted(slot for slot, s in zip(slots, head, strict=True) if s) for head in seen]
