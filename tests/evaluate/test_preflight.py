"""Models are evaluated only where a prefix and rows behind it give what they themselves say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny import DSA, EXPERTS, READS_REFERENCE, folder, tiny
from topkit.cli.commands import app
from topkit.cli.exits import run
from topkit.experiments.evaluate.evaluate import evaluate

LLAMA4 = dict(num_local_experts=2, intermediate_size_mlp=48)
KINDS = ["sliding_attention", "full_attention"]


def made(path: Path, kind: str, changes: dict[str, Any]) -> Path:
    return folder(path, tiny(kind, **{**READS_REFERENCE, **changes}))


REFUSED = [
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
    model = made(tmp_path / "model", kind, changes)
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
    ("gemma2", dict(attn_logit_softcapping=5.0, sliding_window=96)),
    ("gpt_oss", dict(EXPERTS, sliding_window=96)),
    ("phi", {}),
    ("llama4_text", dict(LLAMA4, attention_chunk_size=512)),
    ("deepseek_v32", DSA),
]


@pytest.mark.parametrize(("kind", "changes"), ACCEPTED)
def test_a_model_that_gives_the_same_is_evaluated(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = made(tmp_path / "model", kind, changes)
    rows = evaluate(model, "niah-single", 200, 1, "exact", 8, out=tmp_path / "run")
    assert rows.num_rows == 2
