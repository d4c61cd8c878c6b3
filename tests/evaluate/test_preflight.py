"""Models are evaluated only where a prefix and rows behind it give what they themselves say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from topkit.cli.commands import app
from topkit.cli.exits import run
from topkit.experiments.evaluate.evaluate import evaluate
from topkit.experiments.model.load import REFERENCE

SMALL = dict(
    vocab_size=4096,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=1,
)
DSA = dict(
    num_key_value_heads=4,
    moe_intermediate_size=16,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
    index_topk=16,
    index_head_dim=16,
    index_n_heads=2,
)
LLAMA4 = dict(num_local_experts=2, intermediate_size_mlp=48)
KINDS = ["sliding_attention", "full_attention"]


def folder(path: Path, kind: str, changes: dict[str, Any]) -> Path:
    """A tiny random model with the tokenizer of `reference`."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **changes})
    config.initializer_range = 0.2  # attention is far from uniform
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(REFERENCE).save_pretrained(path)
    return path


REFUSED = [
    ("gpt_oss", dict(num_local_experts=2, num_experts_per_tok=1), "GptOssForCausalLM", "sinks"),
    ("gemma2", dict(attn_logit_softcapping=5.0), "Gemma2ForCausalLM", "softcapped"),
    ("deepseek_v32", DSA, "DeepseekV32ForCausalLM", "its own choice"),
    ("llama4_text", dict(LLAMA4, attention_chunk_size=96), "Llama4ForCausalLM", "another way"),
    (
        "llama4_text",
        dict(LLAMA4, attention_chunk_size=512, floor_scale=96, no_rope_layers=[0, 0]),
        "Llama4ForCausalLM",
        "over 104 tokens",
    ),
    ("mamba", dict(state_size=4), "MambaForCausalLM", "AttentionInterface"),
]


@pytest.mark.parametrize(("kind", "changes", "name", "reason"), REFUSED)
def test_a_model_that_attends_otherwise_is_refused_by_name(
    kind: str, changes: dict[str, Any], name: str, reason: str, tmp_path: Path, capsys: Any
) -> None:
    model = folder(tmp_path / "model", kind, changes)
    words = "--task niah-single --samples 1 --length 200 --indexer exact -k 8 --out".split()
    assert run(app, ["evaluate", str(model), *words, str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{name} cannot be evaluated: " in line
    assert reason in line
    assert not (tmp_path / "run").exists()


ACCEPTED = [
    ("qwen3", {}),
    ("mistral", dict(sliding_window=96)),
    ("gemma3_text", dict(sliding_window=96, layer_types=KINDS)),
    ("gemma2", dict(attn_logit_softcapping=None, sliding_window=96)),
    ("phi", {}),
    ("llama4_text", dict(LLAMA4, attention_chunk_size=512)),
]


@pytest.mark.parametrize(("kind", "changes"), ACCEPTED)
def test_a_model_that_gives_the_same_is_evaluated(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = folder(tmp_path / "model", kind, changes)
    rows = evaluate(model, "niah-single", 200, 1, "exact", 8, out=tmp_path / "run", quiet=True)
    assert rows is not None and rows.num_rows == 2
