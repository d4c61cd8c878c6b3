"""Twilight's plain selector and int4 keys; transformers' top-p stands for its CUDA kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "tsinghua-ideal/Twilight"
CODE = {
    "twilight/pyimpl/quest.py": ["quest_selector"],
    "twilight/pyimpl/quantize.py": ["min_max_per_token_quant_kv"],
}
NOTE = (
    "Its top-p is a CUDA kernel; here transformers' TopPLogitsWarper, of the estimates that the selector let "
    "through, as in its attention.py."
)
CASES = (
    Case("twilight(quest(page_size=8), mass=0.85, candidates=0.25)", "twilight(quest(page_size=8), mass=0.5, candidates=0.25)",
         length=128, k=128, options={"chunk_size": 8, "sparsity_rate": 0.25, "threshold": 0.85}),
    Case("twilight(quest(page_size=4), mass=0.6, candidates=0.5)", "twilight(quest(page_size=8), mass=0.6, candidates=0.5)",
         seed=1, length=160, width=32, k=160, options={"chunk_size": 4, "sparsity_rate": 0.5, "threshold": 0.6}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    from transformers import TopPLogitsWarper

    selector = checkout.file("twilight/pyimpl/quest.py").quest_selector
    quantized = checkout.file("twilight/pyimpl/quantize.py").min_max_per_token_quant_kv
    queries, keys = every_head(tensors)
    newest, options = queries[:, :, -1:], dict(case.options)
    top_p = TopPLogitsWarper(options.pop("threshold"))
    mask = selector(SimpleNamespace(num_heads=case.heads[0]), newest, keys, **options)
    scores = newest @ quantized(keys, 4).mT * case.width**-0.5
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)[0, :, 0]
    said: Any = torch.zeros(len(scores), 1, dtype=torch.long)
    return slots_of(top_p(said, scores) > -torch.inf)
