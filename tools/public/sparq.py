"""SparQ's approximate attention, which notes the slots that it chose."""

from __future__ import annotations

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head

REPOSITORY = "graphcore-research/llm-inference-research"
CODE = {"llminference/methods/ann_attention.py": ["SparseQ.forward", "AnnAttention.forward"]}
NOTE = "Each query head has keys of its own: this code sums over the heads of a group."
CASES = (
    Case("sparq(channels=4, window=1)", "sparq(channels=2, window=1)", options={"k": 15, "local_k": 0, "rank": 4}),
    Case("sparq(channels=8, window=5)", "sparq(channels=8, window=9)", seed=1, length=120, width=32, options={"k": 29, "local_k": 4, "rank": 8}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    doors = ("llminference", "llminference.methods", "llminference.models")
    models = [f"llminference.models.{name}_attention" for name in ("gemma", "llama", "mistral")]
    name = "llminference.methods.ann_attention"
    code = checkout.module(name, doors, (*models, "llminference.utility"))
    queries, keys = every_head(tensors)
    settings = code.Settings(reallocate_to_mean_value=True, score="sparse_q", **case.options)
    attention = code.AnnAttention(settings, case.heads[0], case.width)
    attention.debug_indices = []
    seen = torch.zeros(1, case.heads[0], 1, case.length)
    attention(queries[:, :, -1:], keys, keys, seen)
    return [sorted(head) for head in attention.debug_indices[0][0, :, 0, 0].tolist()]
