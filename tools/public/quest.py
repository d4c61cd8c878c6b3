"""Quest's own attention, whose weights are above zero where a page was chosen."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "mit-han-lab/Quest"
CODE = {"evaluation/quest_attention.py": ["forward", "local_heavy_hitter_mask"]}
NOTE = "RoPE is left out. Its least number of pages is 3."
CASES = (
    Case("quest(page_size=8)", "quest(page_size=4)", options={"token_budget": 24, "chunk_size": 8}),
    Case("quest(page_size=8)", "moba(page_size=8)", seed=1, length=61, options={"token_budget": 32, "chunk_size": 8}),
    Case("quest(page_size=16)", "quest(page_size=32)", seed=2, length=200, heads=(4, 4), options={"token_budget": 64, "chunk_size": 16}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("evaluation/quest_attention.py")
    code.apply_rotary_pos_emb = lambda queries, keys, *_: (queries, keys)
    queries, keys = every_head(tensors)
    width, length = case.width, case.length

    def as_is(x: Tensor) -> Tensor:
        return x

    module = SimpleNamespace(
        layer_id=2, head_dim=width, hidden_size=case.heads[0] * width,
        num_heads=case.heads[0], num_key_value_heads=case.heads[0], num_key_value_groups=1,
        q_proj=as_is, k_proj=lambda _: keys[:, :, -1:].transpose(1, 2), v_proj=as_is, o_proj=as_is,
        rotary_emb=lambda *_: (None, None), **case.options,
    )  # fmt: skip
    newest = queries[:, :, -1:].transpose(1, 2).reshape(1, 1, -1)
    past = (keys[:, :, :-1], torch.zeros_like(keys[:, :, :-1]))
    at = torch.tensor([[length - 1]])
    _, weights, _ = code.forward(module, newest, None, at, past, output_attentions=True)
    return slots_of(weights[0, :, -1] > 0)
