"""Captures of tiny random models: what is kept gives back what the model computed."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tiny import DSA
from tiny import tiny as tiny_model
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.from_model import capture_model, capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.model.attention import NAME
from topkit.experiments.model.digests import tokenizer_digest
from topkit.experiments.model.record import record
from topkit.experiments.runs.plan import run
from topkit.experiments.runs.pool import pool
from topkit.experiments.tasks import make_task

tiny = functools.partial(tiny_model, vocab_size=97, num_hidden_layers=3, head_dim=8)


def passages(count: int = 2, length: int = 40, kept: int = 6) -> list[Passage]:
    ids = torch.randint(0, 97, (count, length), generator=torch.Generator().manual_seed(1))
    return [Passage(row.tolist(), range(length - kept, length)) for row in ids]


def captured(model: Any, out: Any, **options: Any) -> Capture:
    options = {"origin": {"model": "tiny"}, **options}
    return capture_passages(model, options.pop("passages", passages()), out=out, **options)


def attention(x: Any) -> torch.Tensor:
    """softmax(scaling q k) v in float64, one query and head at a time: [Tq, Hq, Dv]."""
    rows = []
    group = x.queries.shape[1] // x.keys.shape[1]
    for i, position in enumerate(x.positions.tolist()):
        for h in range(x.queries.shape[1]):
            keys = x.keys[0, h // group, : position + 1].double()
            weights = (keys @ x.queries[0, h, i].double() * x.scaling).softmax(0)
            rows.append(weights @ x.values[0, h // group, : position + 1].double())
    return torch.stack(rows).view(len(x.positions), x.queries.shape[1], -1)


def outputs(model: Any, ids: list[int]) -> dict[int, torch.Tensor]:
    """What enters each layer's output projection in the model's own run: [T, Hq * Dv]."""
    found: dict[int, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(model.model.layers):
        attn = block.self_attn
        projection = attn.dense if hasattr(attn, "dense") else attn.o_proj

        def keep(_, args, layer=layer):
            found[layer] = args[0][0]

        handles.append(projection.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "changes", "layers"),
    [
        ("llama", {}, [0, 1, 2]),
        ("llama", {"num_key_value_heads": 1}, [0, 1, 2]),
        ("qwen3", {}, [0, 1, 2]),
        ("mistral", {"sliding_window": None}, [0, 1, 2]),
        ("mistral", {"sliding_window": 64}, [0, 1, 2]),
        ("phi", {}, [0, 1, 2]),
        ("phi3", {"pad_token_id": 0}, [0, 1, 2]),
        (
            "gemma3_text",
            {
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            [1],
        ),
    ],
)
def test_what_is_captured_gives_the_models_attention_output(
    tmp_path, kind, changes, layers, implementation
):
    model = tiny(kind, **changes)
    model.set_attn_implementation(implementation)
    capture = captured(model, tmp_path)
    assert capture.layers == layers
    assert capture.samples == [0, 1]
    for sample, passage in enumerate(passages()):
        real = outputs(model, list(passage.ids))
        for layer in layers:
            x = capture.load(sample, layer)
            assert x.positions.tolist() == list(passage.positions)
            got = attention(x).flatten(1)
            want = real[layer][x.positions].double()
            assert (got - want).norm() <= 1e-5 * want.norm()
            assert x.keys.shape[1] == model.config.num_key_value_heads


def test_sliding_layers_are_left_out_and_the_manifest_says_so(tmp_path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = tiny("gemma3_text", sliding_window=8, layer_types=kinds)
    skipped = captured(model, tmp_path / "all").manifest["skipped"]
    assert [note["layer"] for note in skipped] == [0, 2]
    assert "sliding window of 8" in skipped[0]["reason"]
    with pytest.raises(InputError, match=r"layer 2 of Gemma3ForCausalLM .* sliding window of 8"):
        captured(model, tmp_path / "two", layers="1,2")
    with pytest.raises(InputError, match=r"no layer of MistralForCausalLM .* window of 8"):
        captured(tiny("mistral", sliding_window=8), tmp_path / "none")
    assert not (tmp_path / "none").exists()


REFUSED = {
    "AttentionInterface": ("gptj", {"rotary_dim": 4}, "GPTJForCausalLM"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_models_whose_attention_is_another_are_refused_by_name(tmp_path, reason):
    kind, changes, name = REFUSED[reason]
    with pytest.raises(InputError, match=f"{name} cannot be captured: .*{reason}"):
        captured(tiny(kind, **changes), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_the_check_catches_attention_that_is_secretly_another(tmp_path):
    """A model whose attention function is not told what it does: keys masked beyond causality."""
    model = tiny("llama")
    attn = model.model.layers[1].self_attn
    forward = attn.forward

    def blinkered(hidden_states, attention_mask=None, **kwargs):
        length = hidden_states.shape[1]
        near = torch.ones(length, length, dtype=torch.bool).tril().triu(-20)[None, None]
        return forward(hidden_states=hidden_states, attention_mask=near, **kwargs)

    attn.forward = blinkered
    with pytest.raises(InputError, match=r"LlamaForCausalLM cannot be captured: in layer 1 .* off"):
        captured(model, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert captured(model, tmp_path, layers="0,2").layers == [0, 2]


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
def test_sparse_mla_models_with_what_their_indexer_reads(tmp_path, kind):
    model = tiny(kind, **{**DSA, "num_hidden_layers": 2})
    capture = captured(model, tmp_path, hidden=True)
    assert capture.layers == [0, 1]
    x = capture.load(1, 1)
    assert list(x.queries.shape) == [1, 4, 6, 20]
    assert list(x.keys.shape) == [1, 4, 40, 20]
    assert x.values is not None and list(x.values.shape) == [1, 4, 40, 16]
    assert x.hidden is not None and list(x.hidden.shape) == [1, 40, 32]
    assert x.latent is not None and list(x.latent.shape) == [1, 40, 24]
    assert x.rope is not None and list(x.rope[0].shape) == [1, 40, 8]
    found: dict[str, Any] = {}
    attn = model.model.layers[1].self_attn

    def keep(_, args, kwargs):
        found["hidden"] = args[0] if args else kwargs["hidden_states"]

    handle = attn.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(torch.tensor([list(passages()[1].ids)]))
        latent = attn.q_a_layernorm(attn.q_a_proj(x.hidden))
    handle.remove()
    assert torch.allclose(x.hidden, found["hidden"], rtol=1e-5, atol=1e-6)
    assert torch.allclose(x.latent, latent)


def test_the_model_is_left_as_it_was(tmp_path):
    model = tiny("qwen3")
    model.train()
    ids = list(passages()[0].ids)
    before = outputs(model, ids)[2]
    captured(model, tmp_path, hidden=True)
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert torch.equal(outputs(model, ids)[2], before)
    attn = model.model.layers[0].self_attn
    attn.forward = None
    with pytest.raises(TypeError):
        record(model, torch.tensor([ids]), torch.tensor([0]), inputs=True)
    assert model.config._attn_implementation != NAME
    assert not attn._forward_pre_hooks


def test_layers_and_positions_are_chosen(tmp_path):
    model = tiny("llama")
    every = captured(model, tmp_path / "every", layers=[2], positions="every:16")
    assert (every.layers, every.load(0, 2).positions.tolist()) == ([2], [15, 31])
    last = captured(model, tmp_path / "last", layers="2", positions="last:3")
    assert last.load(1, 2).positions.tolist() == [37, 38, 39]
    given = captured(model, tmp_path / "given", layers="2", positions=[31, 15])
    assert given.fingerprint == every.fingerprint
    for wrong in ("last:41", "last:0", "every:41", "first:3", "1,x", "", "40", [-1]):
        with pytest.raises(InputError, match="positions"):
            captured(model, tmp_path / "wrong", positions=wrong)
    for wrong in ("3", "x", "-1", [7]):
        with pytest.raises(InputError, match="layer"):
            captured(model, tmp_path / "wrong", layers=wrong)


def test_the_stated_size_is_the_size_written(tmp_path):
    model = tiny("qwen3")
    options: Any = {"origin": {}, "passages": passages(3, 50, 4), "hidden": True}
    plan = capture_passages.plan(model, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    assert (len(plan.jobs), plan.done, plan.rows) == (3, 0, 0)
    capture = run(plan)
    assert plan.bytes == sum(
        path.stat().st_size for path in (tmp_path / "run").glob("*.safetensors")
    )
    assert plan.bytes == sum(entry["bytes"] for entry in capture.manifest["files"])


def test_the_manifest_tells_where_it_all_is_from(tmp_path):
    capture = captured(tiny("qwen3"), tmp_path, origin={"model": "tiny", "seed": 3})
    manifest = capture.manifest
    assert manifest["origin"]["model"] == "tiny"
    assert manifest["origin"]["dtype"] == "float32"
    assert len(manifest["origin"]["weights_sha256"]) == 64
    assert manifest["layers"][0] == {"layer": 0, "scaling": 8**-0.5}
    assert manifest["samples"][1]["positions"] == list(range(34, 40))
    assert manifest["samples"][1]["ids"].split() == [str(i) for i in passages()[1].ids]
    assert set(manifest["versions"]) == {"topkit", "torch", "transformers"}
    other = captured(tiny("qwen3", seed=1), tmp_path / "other").manifest
    assert other["origin"]["weights_sha256"] != manifest["origin"]["weights_sha256"]


def test_a_rerun_goes_on_where_it_was_and_only_there(tmp_path):
    model = tiny("llama")
    forwards = []
    model.model.register_forward_hook(lambda *_: forwards.append(1))
    whole = captured(model, tmp_path, passages=passages(3))
    surveyed = len(forwards) - 3
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    for path in (files.file_name(1, 0), files.file_name(2, 2)):
        (tmp_path / path).unlink()
    forwards.clear()
    again = captured(model, tmp_path, passages=passages(3))
    assert len(forwards) - surveyed == 2
    assert again.fingerprint == whole.fingerprint
    kept = [path for path, at in stamps.items() if path.stat().st_mtime_ns == at]
    assert sorted(path.name for path in kept) == [files.file_name(0, n) for n in range(3)]
    with pytest.raises(InputError, match=r"holds another capture .*layers"):
        captured(model, tmp_path, passages=passages(3), layers="0")
    with pytest.raises(InputError, match=r"holds another capture .*weights"):
        captured(tiny("llama", seed=1), tmp_path, passages=passages(3))
    turned = tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    with pytest.raises(InputError, match=r"holds another capture .*config"):
        captured(turned, tmp_path, passages=passages(3))  # the same weights at another RoPE
    forced = captured(model, tmp_path, passages=passages(1), layers="0", force=True)
    assert (forced.samples, forced.layers) == ([0], [0])


def test_a_plan_writes_nothing_and_counts_what_is_there(tmp_path):
    model = tiny("llama")
    options: Any = {"origin": {"model": "tiny"}, "out": tmp_path / "run"}
    captured(model, **options)
    (tmp_path / "run" / files.file_name(1, 2)).write_bytes(b"short")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan = capture_passages.plan(model, passages(3), **options, layers="all")
    assert ([job.inputs for job in plan.jobs], plan.done) == ([{"sample": 1}, {"sample": 2}], 1)
    again = capture_passages.plan(model, passages(2), **options, force=True)
    assert (len(again.jobs), again.done) == (2, 0)
    with pytest.raises(InputError, match="holds another capture"):
        capture_passages.plan(tiny("llama", seed=1), passages(2), **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(InputError, match="share a loaded model"):
        run(plan, runner=pool(2))
    assert run(plan).samples == [0, 1, 2]


def test_what_another_run_captured_in_the_meantime_is_not_done_again(tmp_path):
    model = tiny("llama")
    forwards, events = [], []
    plan = capture_passages.plan(model, passages(2), origin={"model": "tiny"}, out=tmp_path)
    captured(model, tmp_path)
    model.model.register_forward_hook(lambda *_: forwards.append(1))
    run(plan, progress=events.append)
    assert not forwards
    assert [(event.done, event.jobs) for event in events] == [(0, 0)]


def test_half_precision_is_kept_and_checked(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny("llama").to(dtype)
        x = captured(model, tmp_path / str(dtype)).load(0, 0)
        assert x.keys.dtype == x.queries.dtype == dtype


def test_nan_names_sample_layer_and_head(tmp_path):
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[8:16] = torch.nan
    with pytest.raises(InputError, match="sample 0, layer 1, head 1: keys hold NaN"):
        captured(model, tmp_path)


@pytest.mark.slow
def test_reading_a_capture_imports_no_transformers():
    code = "import sys, topkit.experiments.capture.capture; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def byte_tokenizer() -> Any:
    """One token a byte, and a first token <s>, without any file."""
    alphabet = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def test_a_text_is_cut_into_passages_that_begin_as_texts_do(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Über allen Gipfeln ist Ruh. " * 20, encoding="utf-8")
    options: Any = {"length": 64, "tokenizer": byte_tokenizer()}
    model = tiny("llama", vocab_size=257)
    capture = capture_model(model, text=text, samples=3, out=tmp_path / "a", **options)
    first, second, _ = capture.manifest["samples"]
    raw = text.read_bytes()
    assert first["prompt"] == raw[:63].decode()
    assert second["prompt"] == raw[63:126].decode()
    assert [len(first["ids"].split()), first["ids"].split()[0]] == [64, "0"]
    assert first["positions"] == list(range(32, 64))
    assert capture.manifest["origin"]["tokenizer_sha256"] == tokenizer_digest(byte_tokenizer())
    with pytest.raises(InputError, match="580 tokens; 10 samples of length 64 need 630"):
        capture_model(model, text=text, samples=10, out=tmp_path / "b", **options)
    with pytest.raises(InputError, match="cannot read"):
        capture_model(model, text=tmp_path / "no", samples=1, out=tmp_path / "b", **options)
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        capture_model(model, text=text, samples=1, out=tmp_path / "b", **options)


def test_of_a_task_the_question_and_the_answer_are_kept(tmp_path):
    options: Any = {"length": 600, "samples": 2, "tokenizer": byte_tokenizer()}
    model = tiny("llama", vocab_size=257, max_position_embeddings=1024)
    capture = capture_model(model, task="niah-single", out=tmp_path / "a", layers="0", **options)
    assert capture.manifest["origin"]["source"] == {"task": "niah-single"}
    for sample in capture.manifest["samples"]:
        ids, at = [int(token) for token in sample["ids"].split()], sample["positions"]
        assert at == list(range(at[0], len(ids)))
        prompt = make_task("niah-single").sample(byte_tokenizer(), 600, sample["sample"])
        question = prompt.questions[sample["sample"] % len(prompt.questions)]
        assert byte_tokenizer().decode([ids[i] for i in at]) == question.text + question.answer
        assert sample["prompt"].endswith(question.answer)
    with pytest.raises(InputError, match="niah-single"):
        capture_model(model, task="niah-singel", out=tmp_path / "b", **options)
    for both in ({}, {"task": "niah-single", "text": "x"}):
        with pytest.raises(InputError, match="either a task or a text"):
            capture_model(model, out=tmp_path / "b", **both, **options)
