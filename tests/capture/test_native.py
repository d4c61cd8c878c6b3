"""The lists of a model's own indexer, captured as such: its formula, recomputed by hand, gives them row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from own_indexers import OWN, with_indexer
from tiny import tiny
from topkit import Capture
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.model.record import record
from topkit.experiments.runs.plan import WITH_TRANSFORMERS, run

INTERLEAVED = ("glm_moe_dsa", "dots3_note_text", "mistral_large4")
LENGTH, AT = 61, (3, 17, 30, 44, 59, 60)


def turned(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """RoPE on the first dims of x [T, H, d], by angles [T, r / 2], a pair of dims at a time."""
    pairs, out = angles.shape[1], x.clone()
    for i in range(pairs):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
        cos, sin = angles[:, i, None].cos(), angles[:, i, None].sin()
        out[..., i] = x[..., a] * cos - x[..., b] * sin
        out[..., i + pairs] = x[..., b] * cos + x[..., a] * sin
    return out


def scores(model: Any, attn: Any, hidden: Tensor, latent: Tensor | None) -> Tensor:
    """DSA's scores [T, T] of every key for every query, a query at a time."""
    indexer, kind = attn.indexer, model.config.get_text_config().model_type.removesuffix("_text")
    kind = "dots3_note_text" if kind == "dots3_note" else kind
    length, heads, dim = len(hidden), indexer.n_heads, indexer.head_dim
    source = indexer.q_input_norm(hidden) if latent is None else latent
    if kind == "dots3_note_text":
        source = source * attn.q_lora_scale
    queries = (source @ indexer.wq_b.weight.T).view(length, heads, dim)
    if kind == "mistral_large4":
        logs = (torch.arange(length) + 1).float().log()[:, None]
        scale = indexer.softmax_scaling.scale * logs + indexer.softmax_scaling.bias
        queries = queries * scale[..., None]
    raw = hidden @ indexer.wk.weight.T
    centred = raw - raw.mean(-1, keepdim=True)
    keys = centred / (raw.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    keys = (keys * indexer.k_norm.weight + indexer.k_norm.bias)[:, None]
    if getattr(indexer, "use_rope", True):
        width = indexer.qk_rope_head_dim
        theta = 10000.0
        if kind == "dots3_note_text":
            theta = model.config.get_text_config().rope_parameters["indexed_attention"][
                "rope_theta"
            ]
        rates = theta ** (-torch.arange(0, width, 2) / width)
        angles = torch.arange(length)[:, None] * rates
        queries, keys = (turned(x, angles, kind in INTERLEAVED) for x in (queries, keys))
    gates = hidden @ indexer.weights_proj.weight.T
    out = torch.empty(length, length)
    for t in range(length):
        alike = (queries[t] @ keys[:, 0].T * dim**-0.5).clamp_min(0)
        out[t] = (gates[t] * heads**-0.5) @ alike
    return out


@pytest.mark.parametrize("kind", OWN)
def test_what_is_captured_is_what_the_formula_chooses(kind: str, tmp_path: Path) -> None:
    model = with_indexer(kind)
    ids = torch.randint(2, 61, (LENGTH,), generator=torch.Generator().manual_seed(4)).tolist()
    capture = capture_passages(model, [Passage(ids, AT)], origin={}, out=tmp_path)
    own = {
        n: one
        for n, one in record(model, torch.tensor([ids]), torch.arange(LENGTH), inputs=True).items()
    }
    wanted, by_layer = None, dict[int, Tensor]()
    for layer in sorted(own):
        if own[layer].chosen is None:
            continue
        attn = own[layer].module
        if attn.indexer is not None:
            hidden, latent = own[layer].hidden, own[layer].latent
            assert hidden is not None
            wanted = scores(model, attn, hidden[0], None if latent is None else latent[0])
        assert wanted is not None
        by_layer[layer] = wanted
    assert capture.layers == sorted(by_layer) and capture.manifest["own_k"] == 8
    for layer, of_all in by_layer.items():
        lists = capture.load(0, layer).native
        assert lists is not None and tuple(lists.shape) == (1, len(AT), 8)
        for row, t in enumerate(AT):
            seen = of_all[t, : t + 1]
            best = seen.sort(descending=True, stable=True).indices[:8].tolist()
            got = lists[0, row].tolist()
            assert got[len(best) :] == [-1] * (8 - len(best))
            apart = (seen[got[: len(best)]] - seen[best]).abs().max()
            assert apart <= 1e-4 * seen.abs().max(), (layer, t, got, best)
            assert len(set(got[: len(best)])) == len(best)
            if len(seen) > 8:  # no tie at the end of the list
                assert set(got) == set(best)


def test_the_stated_size_is_the_size_written_with_lists_too(tmp_path: Path) -> None:
    model = with_indexer("deepseek_v32")
    for length, width in ((40, 8), (6, 6)):
        out = tmp_path / str(length)
        passages = [Passage(range(2, 2 + length), [length - 2, length - 1])]
        how: dict[str, Any] = dict(origin={}, out=out, hidden=True, prefill_queries=3)
        plan = capture_passages.plan(model, passages, **how)
        weights = sum(x.numel() * x.element_size() for x in model.parameters())
        assert plan.memory == WITH_TRANSFORMERS + weights + 2 * plan.bytes + 8 * 17 * length**2
        assert plan.bytes == sum(entry["bytes"] for entry in run(plan).manifest["files"])
        capture = Capture.open(out)
        lists = capture.load(0, 1).native
        assert lists is not None and list(lists.shape) == [1, 2, width]
        assert lists.dtype == torch.int32
        plain = capture_passages(model, passages, origin={}, out=tmp_path / f"plain-{length}")
        own = plain.load(0, 1).native  # of the positions alone, whatever queries stand before them
        assert own is not None and torch.equal(own, lists)
        saved = capture.save(tmp_path / f"copy-{length}")
        assert saved.fingerprint == capture.fingerprint and saved.manifest["own_k"] == 8


def test_a_model_without_an_indexer_has_no_lists(tmp_path: Path) -> None:
    capture = capture_passages(
        tiny(), [Passage(range(2, 40), [36, 37])], origin={}, out=tmp_path / "capture"
    )
    assert capture.load(0, 0).native is None and "own_k" not in capture.manifest
