"""Models whose softmax has sinks or a softcap are captured with it, and judged by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import topkit
from tiny import EXPERTS, tiny
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.measure.survey import survey
from topkit.experiments.model.attention_call import AttentionCall
from topkit.kernels.gather_attention import PLAIN

KINDS: dict[str, dict[str, Any]] = {
    "gpt_oss": {**EXPERTS, "layer_types": ["full_attention"] * 2},
    "gemma2": {"attn_logit_softcapping": 3.0, "layer_types": ["full_attention"] * 2},
}
LENGTH = 40


@pytest.fixture(scope="module", params=KINDS)
def model(request: Any) -> Any:
    made = tiny(request.param, **KINDS[request.param])
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if name.endswith("sinks"):
            parameter.data = 2 * torch.randn(parameter.shape, generator=generator)
    return made


def captured(model: Any, out: Path) -> Capture:
    ids = tuple(int(x) for x in torch.arange(LENGTH) * 7 % 59)
    passage = Passage(ids, tuple(range(LENGTH - 6, LENGTH)))
    return capture_passages(model, [passage], out=out, origin={"model": "tiny"})


def own_weights(model: Any, capture: Capture, layer: int) -> torch.Tensor:
    """The attention weights [Hq, Tq, T] that transformers itself gives."""
    ids = torch.arange(LENGTH)[None] * 7 % 59
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(ids, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    return attentions[layer][0, :, capture.load(0, layer).positions]


def test_mass_is_that_of_the_models_own_weights(model: Any, tmp_path: Path) -> None:
    capture = captured(model, tmp_path / "c")
    measured = topkit.measure(capture, "streaming_llm(sink=1, window=3)", 4).table.to_pylist()
    heads = [row for row in measured if row["level"] == "head"]
    assert len(heads) == 2 * 4 * 6
    for row in heads:
        weights = own_weights(model, capture, row["layer"])
        position = row["position"] - (LENGTH - 6)
        seen = weights[row["head"], position]
        kept = seen[[0, *range(row["position"] - 2, row["position"] + 1)]].sum()
        assert row["mass"] == pytest.approx(float(kept), abs=1e-5)


def test_all_keys_give_the_models_own_output(model: Any, tmp_path: Path) -> None:
    for row in topkit.measure(captured(model, tmp_path / "c"), "exact", LENGTH).table.to_pylist():
        assert row["output_error"] == pytest.approx(0, abs=1e-5)
        assert row["mass_ratio"] == pytest.approx(1)


def test_the_weight_of_the_first_slot_is_the_models_own(model: Any, tmp_path: Path) -> None:
    capture = captured(model, tmp_path / "c")
    for row in survey(capture).rows:
        own = own_weights(model, capture, row["layer"])
        heads = slice(row["group"] * row["heads"], (row["group"] + 1) * row["heads"])
        assert row["first_weight"] == pytest.approx(float(own[heads, :, 0].mean()), abs=1e-5)


def test_the_softmax_is_on_disk_and_in_the_line_of_the_model(model: Any, tmp_path: Path) -> None:
    line = captured(model, tmp_path / "c").manifest["outline"]
    softmax = Capture.open(tmp_path / "c").load(0, 1).softmax
    if softmax.sinks is None:
        assert softmax.softcap == 3.0 and "scores capped at 3 in layers 0-1" in line
    else:
        assert softmax.sinks.equal(model.model.layers[1].self_attn.sinks.detach())
        assert softmax.softcap is None and "a sink a query head in layers 0-1" in line


def test_a_capture_by_another_softmax_is_refused(
    model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """The mutant: what is recorded lacks sinks and softcap, and its own check says so."""
    real = AttentionCall.softmax
    dense = AttentionCall.dense

    def own(self: AttentionCall) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AttentionCall, "softmax", real)
            return dense(self)

    monkeypatch.setattr(AttentionCall, "dense", own)
    monkeypatch.setattr(AttentionCall, "softmax", property(lambda _: PLAIN))
    with pytest.raises(InputError, match="off its attention output"):
        captured(model, tmp_path / "c")
