"""MoBA's plain attention, of values that tell the keys apart."""

from __future__ import annotations

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "MoonshotAI/MoBA"
CODE = {"moba/moba_naive.py": ["moba_attn_varlen_naive"]}
CASES = (
    Case("moba(page_size=8)", "moba(page_size=4)", width=64, options={"moba_chunk_size": 8, "moba_topk": 3}),
    Case("moba(page_size=8)", "quest(page_size=8)", seed=1, length=61, width=64, options={"moba_chunk_size": 8, "moba_topk": 4}),
    Case("moba(page_size=16)", "moba(page_size=8)", seed=2, length=96, width=96, options={"moba_chunk_size": 16, "moba_topk": 2}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("moba/moba_naive.py")
    queries, keys = (x[0].transpose(0, 1) for x in every_head(tensors))
    # Of each key a channel of its own.
    own = torch.eye(case.length, case.width)[:, None].expand_as(keys)
    ends = torch.tensor([0, case.length])
    out = code.moba_attn_varlen_naive(queries, keys, own, ends, case.length, **case.options)
    return slots_of(out[-1] > 0)
