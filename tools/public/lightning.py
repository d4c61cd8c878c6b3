"""The indexer of transformers' DeepSeek-V3.2, of drawn weights; the checkout is transformers'."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from public import files
from public.case import Case, Choices
from public.checkout import Checkout

REPOSITORY = "huggingface/transformers"
CODE = {
    "src/transformers/models/deepseek_v32/modeling_deepseek_v32.py": ["DeepseekV32Indexer.forward"],
}
NOTE = "The installed package, whose commit is a version."
CASES = (
    Case("lightning({file})", "misa({file}, heads=2, block=8, candidates=40)", file="indexer", length=200, options={"index_topk": 16}),
    Case("lightning({file})", "misa({file}, heads=1, block=4, candidates=40)", file="indexer", seed=1, length=120, options={"index_topk": 30}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as code

    config: Any = SimpleNamespace(
        hidden_size=files.HIDDEN, index_n_heads=files.INDEX_HEADS, index_head_dim=files.INDEX,
        qk_rope_head_dim=files.ROPE, q_lora_rank=files.LATENT, **case.options,
    )  # fmt: skip
    indexer = code.DeepseekV32Indexer(config, 0)
    names = {
        "wq_b.weight": "wq", "wk.weight": "wk", "weights_proj.weight": "gates",
        "k_norm.weight": "norm", "k_norm.bias": "norm_bias",
    }  # fmt: skip
    indexer.load_state_dict({theirs: tensors[f"0.{ours}"] for theirs, ours in names.items()})
    later = torch.ones(case.length, case.length, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, case.length, case.length).masked_fill(later, -torch.inf)
    angles = (tensors["cos"], tensors["sin"])
    slots = torch.arange(case.length)[None]
    chosen = indexer(tensors["hidden"], tensors["latent"], angles, mask, slots)
    return [sorted(chosen[0, -1].tolist())]
