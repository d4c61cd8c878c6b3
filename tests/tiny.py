"""Tiny models with random weights, their folders, prompts for them, and index weights of their widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from topkit.experiments.model.load import REFERENCE  # noqa: E402
from topkit.experiments.train.lightning import save_weights  # noqa: E402

VOCABULARY = 61
SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
# What a model of DeepSeek's sparse attention takes besides.
DSA = dict(
    num_key_value_heads=4,
    head_dim=8,
    moe_intermediate_size=16,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    index_topk=8,
    index_head_dim=16,
    index_n_heads=4,
)
EXPERTS = dict(num_local_experts=2, num_experts_per_tok=1)
# Models that read the tokens of `reference`.
READS_REFERENCE = dict(
    vocab_size=4096, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, head_dim=8
)
# Padding of a prompt's first row.
PAD = 7


def tiny(kind: str = "qwen3", seed: int = 0, **changes: Any) -> Any:
    """A causal model in evaluation mode; `generate` never ends by itself."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **changes})
    # Ten times the usual spread, so that attention is far from uniform.
    config.initializer_range = 0.2
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def like_reference(width: int = 384) -> Any:
    """A random Llama with the tokens, layers and heads of the reference model."""
    shape = dict(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
    )
    return tiny("llama", **{**READS_REFERENCE, **shape})


def folder(path: Path, model: Any) -> Path:
    """The model in a folder, with the tokenizer of `reference`."""
    model.save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(REFERENCE).save_pretrained(path)
    return path


def bert() -> Any:
    """An encoder."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.BertForMaskedLM(config)


def t5() -> Any:
    """An encoder and a decoder."""
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=1)
    return transformers.T5ForConditionalGeneration(config)


def tokens(rows: int = 1, length: int = 24, seed: int = 1, device: str = "cpu") -> torch.Tensor:
    """Token ids [rows, length], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (rows, length), generator=generator).to(device)


def prompt(
    rows: int = 1, length: int = 24, padded: bool = False, seed: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """What `generate` takes; `padded`: the first row has PAD tokens fewer."""
    ids = tokens(rows, length, seed, device)
    mask = torch.ones_like(ids)
    if padded:
        ids[0, :PAD], mask[0, :PAD] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def lightning_for(
    out: Path, heads: int = 2, dim: int = 32, reads: str = "hidden", dtype: str = "fp32"
) -> str:
    """A lightning indexer with random weights for both layers of a tiny model."""
    torch.manual_seed(3)
    shapes: dict[str, Any] = {
        "wq": (heads * dim, 32),
        "wk": (dim, 32),
        "norm": (dim,),
        "norm_bias": (dim,),
        "gates": (heads, 32),
    }
    tensors = {f"{n}.{w}": torch.randn(shape) for n in range(2) for w, shape in shapes.items()}
    how = {"heads": heads, "rope": "half", "rope_at": "first", "reads": reads}
    file = save_weights(out, "tiny", tensors, **how)
    return f"lightning(weights={str(file)!r}, dtype={dtype!r})"
