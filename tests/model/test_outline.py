"""A model in one line, the same wherever it is said."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tiny import DSA, READS_REFERENCE, folder, tiny, tokens
from topkit import attach, capture, evaluate, measure
from topkit.experiments.model.load import load
from topkit.experiments.model.outline import outline, ranges
from topkit.experiments.model.record import record

LLAMA = "LlamaForCausalLM: 2 layers, 4 query heads on 2 KV heads of width 8; layers 0-1 sparse"
GEMMA = (
    "Gemma3ForCausalLM: 4 layers, 4 query heads on 1 KV head of width 8; layers 1, 3 sparse; "
    "layers 0, 2 dense (a sliding window of 16 keys)"
)


def models() -> dict:
    kinds = ["sliding_attention", "full_attention"] * 2
    gemma: Any = dict(
        num_hidden_layers=4, num_key_value_heads=1, sliding_window=16, layer_types=kinds
    )
    return {
        LLAMA: tiny("llama", **READS_REFERENCE),
        GEMMA: tiny("gemma3_text", **{**READS_REFERENCE, **gemma}),
    }


@pytest.mark.parametrize("line", [LLAMA, GEMMA])
def test_every_command_says_the_same_line(line: str, tmp_path) -> None:
    path = folder(tmp_path / "model", models()[line])
    plan = capture.plan(path, task="niah-single", length=300, samples=1, out=tmp_path / "capture")
    assert plan.notes == (line,)
    taken = capture(path, task="niah-single", length=300, samples=1, out=tmp_path / "capture")
    assert measure.plan(taken, "sign", 8).notes == (line,)
    asked = evaluate.plan(path, "niah-single", 300, 1, "sign", 8, out=tmp_path / "run")
    assert asked.notes == (line,)
    with attach(load(path)[0], "sign", k=8) as attached:
        assert attached.outline == line
        assert line in repr(attached)
        attached._layers.selected = True  # nothing ran, and nothing is to be warned of


def test_a_layer_whose_window_holds_the_prompt_sees_all_of_it(tmp_path) -> None:
    path = folder(
        tmp_path / "model", tiny("gemma3_text", **{**READS_REFERENCE, "sliding_window": 300})
    )
    plan = capture.plan(path, task="niah-single", length=300, samples=1, out=tmp_path / "capture")
    assert "; layers 0-1 sparse" in plan.notes[0]
    assert "dense" not in plan.notes[0]


def test_layers_of_choice_are_the_sparse_ones() -> None:
    model = tiny("llama")
    with attach(model, "sign", k=8, layers=[1]) as attached:
        assert attached.outline.endswith("; layer 1 sparse; layer 0 dense by choice")
        attached._layers.selected = True


def test_an_own_indexer_is_named() -> None:
    model = tiny("deepseek_v32", **DSA)
    records = record(model, tokens(), torch.arange(24), inputs=True)
    line = outline(model, records, set(records))
    assert re.search(r"; an indexer of its own \(8 keys\) in layers 0-1$", line)


@pytest.mark.parametrize(
    ("layers", "said"),
    [([3], "layer 3"), ([0, 1, 2], "layers 0-2"), ([5, 0, 1, 9, 4], "layers 0-1, 4-5, 9")],
)
def test_layers_in_words(layers: list[int], said: str) -> None:
    assert ranges(layers) == said
