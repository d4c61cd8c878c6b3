"""Tiny models as GGUF files, written tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import READS_REFERENCE, tiny
from topkit.experiments.model.load import REFERENCE

gguf = pytest.importorskip("gguf")

TEMPLATE = "{% for m in messages %}<|begin|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama(**changes: Any) -> Any:
    """A random Llama that reads the tokens of `reference`."""
    return tiny("llama", **{**READS_REFERENCE, **changes})


def write(
    path: Path, model: Any, architecture: str = "llama", cut: str = "smollm", **fields: Any
) -> Path:
    """The model as a GGUF file with the tokenizer of `reference`; `fields` are further metadata."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _vocabulary(writer, cut)
    for name, value in fields.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{name.replace('__', '.')}", value)
    for name, x in model.state_dict().items():
        writer.add_tensor(_name(name), np.ascontiguousarray(_permuted(name, x.numpy(), config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(writer: Any, cut: str) -> None:
    tokenizer = json.loads((REFERENCE / "tokenizer.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def _name(name: str) -> str:
    part, suffix = name.rsplit(".", 1)
    if not part.startswith("model.layers."):
        whole = {
            "model.embed_tokens": "token_embd",
            "model.norm": "output_norm",
            "lm_head": "output",
        }
        return f"{whole[part]}.{suffix}"
    _, _, layer, rest = part.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{suffix}"


def _permuted(name: str, x: np.ndarray, config: Any) -> np.ndarray:
    """Llama's queries and keys as ggml turns them: neighbours in place of halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return x
    rows = x.reshape(count, 2, -1, x.shape[1])
    return rows.swapaxes(1, 2).reshape(x.shape)
