"""Tiny models with an indexer of their own, and kinds of it that cannot be driven."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tiny import DSA, SMALL, tiny

SHARED = dict(num_hidden_layers=4, indexer_types=["full", "shared", "full", "shared"])
SWA = dict(
    swa_num_attention_heads=2,
    swa_num_key_value_heads=2,
    swa_q_lora_rank=16,
    swa_kv_lora_rank=16,
    swa_head_dim=16,
    swa_qk_nope_head_dim=8,
    swa_v_head_dim=8,
)
WITHOUT_LORA = {name: x for name, x in DSA.items() if name != "q_lora_rank"}
# Many index heads: few keys then score zero, and few lists end between equal scores.
HEADS = dict(index_n_heads=16)
# By kind: what is not small, and what its line says.
OWN: dict[str, tuple[dict[str, Any], str]] = {
    "deepseek_v32": ({**DSA, **HEADS}, "layers 0-1"),
    "glm_moe_dsa": ({**DSA, **HEADS, **SHARED}, "layers 0, 2, whose lists layers 1, 3 reuse"),
    "axk2": ({**DSA, **HEADS}, "layers 0-1"),
    "dots3_note_text": (
        {
            **DSA,
            **HEADS,
            **SWA,
            "num_hidden_layers": 3,
            "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
            "sliding_window": 48,
        },
        "layers 0, 2",
    ),
    "mistral_large4": (
        {
            **WITHOUT_LORA,
            **HEADS,
            **SHARED,
            "kv_source_layers": [0, 1, 1, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "layers 0, 2, whose lists layers 1, 3 reuse",
    ),
}
LINEAR = dict(
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
)
EXPERTS = dict(num_experts_per_tok=1, moe_intermediate_size=16)
OTHERS: dict[str, dict[str, Any]] = {
    "qwen4_exp_text": {
        **EXPERTS,
        **LINEAR,
        "num_experts": 2,
        "shared_expert_intermediate_size": 16,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "indexed_attention"],
        "hc_count": 2,
        "hc_lowrank": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "head_dim": 8,
    },
    "glm5_next": {
        **DSA,
        "qk_rope_head_dim": 0,
        "index_kpool": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "num_hidden_layers": 2,
        "mlp_layer_types": ["dense", "dense"],
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_types": ["full", "full"],
    },
    "deepseek_v4": {
        **EXPERTS,
        "n_routed_experts": 2,
        "n_shared_experts": 1,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "compressed_sparse_attention"],
        "q_lora_rank": 16,
        "o_lora_rank": 8,
        "o_groups": 2,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 4,
        "sliding_window": 8,
        "head_dim": 16,
        "hc_mult": 2,
        "num_key_value_heads": 1,
        "qk_rope_head_dim": 8,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "dense_intermediate_size": 16,
        "shared_intermediate_size": 16,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "head_dim": 8,
    },
}
VISION = {
    "mistral_large4": dict(
        model_type="pixtral", num_hidden_layers=1, head_dim=8, image_size=28, patch_size=14
    ),
    "glm5_next": dict(depth=1, num_heads=2, out_hidden_size=32),
}


def with_indexer(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny model of a kind of OWN or OTHERS; of one that sees pictures too, the whole of it."""
    shape = OWN[kind][0] if kind in OWN else OTHERS[kind]
    if kind not in VISION:
        return tiny(kind, seed, **{**shape, **changes})
    torch.manual_seed(seed)
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, **VISION[kind]}
    config = transformers.AutoConfig.for_model(
        kind, text_config={**SMALL, **shape, **changes}, vision_config=seeing
    )
    config.text_config.initializer_range = 0.2
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
