"""TidalDecode's attention, layer by layer, of values that tell the keys apart."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "DerrickYLJ/TidalDecode"
CODE = {"src/tidal_build/modify_llama.py": ["llama_tidal_attention_forward"]}
NOTE = "RoPE is left out. The choice is the last layer's; those before it have tensors of the next seeds."
OPTIONS = {"top_k": 16, "sparse_layer_start": 2, "correction_layer": 5}
CASES = (
    Case("tidaldecode(layers=(2, 5))", "tidaldecode(layers=(3, 5))", width=64, layers=(2, 3), options=OPTIONS),
    Case("tidaldecode(layers=(2, 5))", "tidaldecode(layers=(2, 6))", seed=9, length=61, width=64, layers=(2, 5, 6), options=OPTIONS),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    from transformers.models.llama import modeling_llama

    setattr(modeling_llama, "LlamaSdpaAttention", object)  # noqa: B010 (one of an older version, not used)
    code = checkout.file("src/tidal_build/modify_llama.py")
    code.apply_rotary_pos_emb = lambda queries, keys, *_: (queries, keys)
    heads = case.heads[0]

    def as_is(x: Tensor) -> Tensor:
        return x

    module = SimpleNamespace(
        num_heads=heads, num_key_value_heads=heads, num_key_value_groups=1, head_dim=case.width,
        q_proj=as_is, k_proj=as_is, v_proj=as_is, o_proj=as_is,
    )  # fmt: skip
    own = torch.eye(case.length, case.width).expand(1, heads, -1, -1)
    out = torch.empty(0)
    for module.layer_idx in case.layers:
        queries, keys = every_head(case.of_layer(module.layer_idx).tensors())
        cache = _cache(keys, own)
        newest = queries[:, :, -1:].transpose(1, 2).reshape(1, 1, -1)
        out, _, _ = code.llama_tidal_attention_forward(
            module, newest, past_key_value=cache, position_embeddings=(None, None), **case.options
        )
    return slots_of(out.view(heads, case.width) > 0)


def _cache(keys: Tensor, values: Tensor) -> SimpleNamespace:
    return SimpleNamespace(update=lambda *_: (keys, values), get_seq_length=lambda _: keys.shape[2])
