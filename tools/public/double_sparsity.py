"""Double Sparsity's own attention over an order of channels: its weights are above zero where a key was chosen."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "andy-yang-1/DoubleSparse"
CODE = {"evaluation/modify_llama.py": ["LlamaAttention_heavy_hitter.forward"]}
NOTE = "RoPE is left out; labels are not quantised (label_bits=16). The order of channels is drawn."
CASES = (
    Case("double_sparsity(channels=4, calibration={file})", "double_sparsity(channels=8, calibration={file})",
         file="channels", options={"heavy_const": 16, "group_factor": 4}),
    Case("double_sparsity(channels=2, calibration={file})", "double_sparsity(channels=2)",
         file="channels", seed=1, length=100, width=32, options={"heavy_const": 25, "group_factor": 16}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("evaluation/modify_llama.py")
    code.apply_rotary_pos_emb = lambda queries, keys, *_: (queries, keys)
    queries, keys = every_head(tensors)
    heads, group = case.heads[0], case.heads[0] // case.heads[1]

    def as_is(x: Tensor) -> Tensor:
        return x

    module = SimpleNamespace(
        layer_idx=2, config=SimpleNamespace(pretraining_tp=1), num_heads=heads,
        num_key_value_heads=heads, num_key_value_groups=1, head_dim=case.width,
        hidden_size=heads * case.width,
        q_proj=as_is, k_proj=as_is, v_proj=as_is, o_proj=as_is, label_bits=16,
        sorted_channel=tensors["0.channels"].repeat_interleave(group, 0), **case.options,
    )  # fmt: skip
    cache = SimpleNamespace(update=lambda *_: (keys, torch.zeros_like(keys)))
    newest = queries[:, :, -1:].transpose(1, 2).reshape(1, 1, -1)
    _, weights, _ = code.LlamaAttention_heavy_hitter.forward(
        module, newest, None, None, cache, True, position_embeddings=(None, None)
    )
    return slots_of(weights[0, :, 0] > 0)
