"""A GGUF file gives the model and the tokenizer that were written into it, or one line."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import TEMPLATE, llama, write
from tiny import folder
from topkit import attach, capture, evaluate, measure
from topkit.errors import InputError
from topkit.experiments.model.gguf_file import load_gguf
from topkit.experiments.model.gguf_header import read_header
from topkit.experiments.model.load import REFERENCE, load, origin_of


@pytest.fixture(scope="module")
def model():
    return llama(rope_parameters={"rope_type": "default", "rope_theta": 54321.0})


@pytest.fixture(scope="module")
def file(tmp_path_factory, model) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def test_the_model_is_the_one_that_was_written(file, model, capfd) -> None:
    loaded, tokenizer = load(file)
    assert capfd.readouterr() == ("", "")
    ids = torch.arange(3, 60)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.rope_parameters["rope_theta"] == 54321
    assert (loaded.dtype, loaded.training) == (torch.float32, False)
    assert (loaded.generation_config.eos_token_id, tokenizer.eos_token_id) == (1, 1)
    assert load(file, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_gguf(file, "auto")[0].dtype == torch.bfloat16
    assert load(str(file))[0].config.name_or_path == str(file)


@pytest.fixture(scope="module")
def tokenizers(file):
    return load(file)[1], load("reference")[1]


@given(st.text(st.sampled_from("ab 0189\n\t.,'é<|>begin"), max_size=40))
@settings(deadline=None)
def test_texts_are_cut_as_the_vocabulary_was_learnt(tokenizers, text: str) -> None:
    ours, theirs = (tokenizer(text)["input_ids"] for tokenizer in tokenizers)
    assert ours == theirs
    assert tokenizers[0].decode(ours) == tokenizers[1].decode(theirs)


def test_a_chat_follows_the_template_of_the_file(file) -> None:
    tokenizer = load(file)[1]
    assert tokenizer.chat_template == TEMPLATE
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "<|begin|>user: hi\n"


def test_what_lies_beside_the_file_is_not_read(file, tmp_path) -> None:
    own = folder(tmp_path / "other", llama(hidden_size=64))
    shutil.copy(file, own / "tiny.gguf")
    (own / "tokenizer.json").write_text("{}")
    (own / "config.json").write_text("{}")
    model, tokenizer = load(own / "tiny.gguf")
    assert model.config.hidden_size == 32
    assert tokenizer.vocab_size == 4096


def test_nothing_is_left_of_the_blocks(file, tmp_path) -> None:
    """It can be saved, and is the same model in a folder."""
    loaded, tokenizer = load(file)
    loaded.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, reads = load(tmp_path / "saved")
    ids = torch.arange(3, 60)[None]
    assert torch.equal(loaded(ids).logits, again(ids).logits)
    assert reads("a 12  3")["input_ids"] == tokenizer("a 12  3")["input_ids"]
    assert loaded.to(torch.float64).dtype == torch.float64


@pytest.mark.slow
def test_the_file_is_captured_measured_evaluated_and_attached_to(file, tmp_path) -> None:
    asked: Any = dict(length=300, samples=1)
    taken = capture(file, task="niah-single", out=tmp_path / "capture", **asked)
    (digest,) = origin_of(load(file)[0]).values()
    assert taken.manifest["origin"]["gguf"] == digest
    assert measure(taken, "sign", 8).table.num_rows
    table = evaluate(
        file, "niah-single", 300, 2, "exact", 8, out=tmp_path / "run", jobs=2, observe=False
    )
    assert table.num_rows
    loaded, tokenizer = load(file)
    ids = tokenizer("Once upon a time", return_tensors="pt")
    with attach(loaded, "exact", k=1000):
        sparse = loaded.generate(**ids, max_new_tokens=8)
    assert torch.equal(sparse, loaded.generate(**ids, max_new_tokens=8))


def test_a_file_that_changed_is_another_run(model, tmp_path) -> None:
    file = write(tmp_path / "a.gguf", model)
    where: Any = dict(lengths=300, samples=1, out=tmp_path / "run", observe=False)
    evaluate(file, "niah-single", **where)
    write(file, model, some__key="new")
    with pytest.raises(InputError, match=r"holds another run \(gguf differ\)"):
        evaluate.plan(file, "niah-single", **where)


@pytest.mark.parametrize("share", [0, 1e-5, 1e-3, 0.05, 0.3, 0.6, 0.9, 0.9999])
def test_a_truncated_file_is_refused(file, tmp_path, share: float) -> None:
    whole = file.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"truncated|is no GGUF file") as error:
        load(path)
    assert str(path) in str(error.value)


@given(st.integers(0, 3000), st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_a_damaged_header_is_one_line_or_read(file, tmp_path_factory, place, byte) -> None:
    content = bytearray(file.read_bytes())
    content[place] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    with suppress(InputError):
        read_header(path)


def headed(path: Path, *parts: bytes, tensors: int = 0, pairs: int = 1) -> Path:
    """A file of a header's counts, and what follows them."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + b"".join(parts))
    return path


def text(words: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(words) if length is None else length) + words


HUGE = 1 << 33
KEY = text(b"a.key")
ONE = KEY + struct.pack("<IB", 0, 1)
TENSOR = text(b"x") + struct.pack("<IQIQ", 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        ([text(b"a.key", HUGE)], {}),
        ([KEY, struct.pack("<I", 8), text(b"", HUGE)], {}),
        ([KEY, struct.pack("<IIQ", 9, 4, HUGE)], {}),
        ([KEY, struct.pack("<IIQ", 9, 8, HUGE)], {}),
        ([KEY, struct.pack("<IIQ", 9, 0, 2**64 - 1)], {}),
        ([], {"pairs": HUGE}),
        ([ONE], {"tensors": HUGE}),
        ([ONE, text(b"x") + struct.pack("<I", 2**32 - 1)], {"tensors": 1}),
        # Two of one name: which of them would be read?
        ([ONE, ONE], {"pairs": 2}),
        ([ONE, TENSOR, TENSOR], {"tensors": 2}),
        # Weights would be read from where they do not stand.
        ([text(b"general.alignment") + struct.pack("<Ii", 5, -32)], {}),
        ([text(b"general.alignment") + struct.pack("<Ii", 5, 24)], {}),
    ],
)
def test_a_header_that_claims_what_is_not_there_takes_no_memory(tmp_path, parts, counts) -> None:
    path = headed(tmp_path / "a.gguf", *parts, **counts)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is truncated or damaged within its header"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    whole = headed(path, ONE, TENSOR, bytes(64), tensors=1)
    assert read_header(whole).get("a.key") == 1


def test_what_is_no_gguf_is_refused(tmp_path) -> None:
    path = tmp_path / "text.gguf"
    path.write_bytes((REFERENCE / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="is no GGUF file: it begins with"):
        load(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(InputError, match="of version 1; expected 2 or 3"):
        load(path)


def test_an_unknown_architecture_is_named(model, tmp_path) -> None:
    path = write(tmp_path / "a.gguf", model, architecture="llamb")
    with pytest.raises(InputError, match=r"'llamb' is not supported .* llama, .* give the"):
        load(path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope__scaling__type": "yarn"}, r"the scaling of its RoPE \(yarn\)"),
        ({"attention__sliding_window": 16}, "its sliding window of 16 keys"),
        ({"cut": "viking"}, r"how its texts are cut into words \(viking\)"),
    ],
)
def test_what_transformers_would_pass_over_is_refused(model, tmp_path, fields, said) -> None:
    with pytest.raises(
        InputError, match=f"cannot be loaded rightly: transformers passes over {said}"
    ):
        load(write(tmp_path / "a.gguf", model, **fields))


def test_a_missing_tensor_is_never_drawn_at_random(model, tmp_path) -> None:
    smaller = llama(num_hidden_layers=1)
    smaller.config.num_hidden_layers = 2
    with pytest.raises(InputError, match=r"lacks weights .* model\.layers\.1\."):
        load(write(tmp_path / "a.gguf", smaller))
