"""Fine-tuning with Top-k attention: beside dense, all else alike; killed, refused, saved and made anew from its difference."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from device import gpu
from tests.tiny import READS_REFERENCE, folder, prompt, tiny
from topkit.errors import InputError
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.load import load
from topkit.experiments.train import loop as loops
from topkit.experiments.train import sft
from topkit.experiments.train.difference import MOST, apply_difference, save_difference
from topkit.experiments.train.recipe import Sft
from topkit.experiments.train.sft import ratio_of, rebuild, train_sft
from topkit.experiments.train.trained_attention import (
    TopkAttention,
    require_trainable,
    training_attention,
)
from topkit.kernels.topk_attention import keys_kept, topk_attention

RECIPE = Sft(steps=4, rows=2, length=48, peak=1e-3, warmup=2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("start"), tiny("qwen3", **READS_REFERENCE))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, start: Path) -> Path:
    """The excerpt's tokens, once."""
    from topkit.experiments.train.prepared import prepared

    out = tmp_path_factory.mktemp("text")
    prepared(str(start), load(start)[1], None, out, 0)
    return out / "text"


def train(start: Path, text: Path, out: Path, **how: Any) -> bool:
    out.mkdir(exist_ok=True)
    if not (out / "text").exists():
        (out / "text").symlink_to(text)
    given = {"attention": "topk", "ratio": "20%", "recipe": RECIPE, "report": lambda line: None}
    if how.get("attention") == "dense":
        given["ratio"] = None
    return train_sft(start, None, out, **{**given, **how})


def weights(out: Path) -> dict[str, Tensor]:
    return {n: x.clone() for n, x in load(out / "model")[0].state_dict().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, start: Path, text: Path) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert train(start, text, out)
    return out


def test_it_changes_the_model_and_saves_one_that_loads(start: Path, trained: Path) -> None:
    model, tokenizer = load(trained / "model")
    before = load(start)[0].state_dict()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[n], after[n]) for n in before if "proj" in n)
    assert tokenizer("12")["input_ids"] == load(start)[1]("12")["input_ids"]
    told = json.loads((trained / "recipe.json").read_text())
    assert (told["attention"], told["ratio"], told["steps"]) == ("topk", "1/5", 4)


def test_both_attentions_read_the_same_batches_in_the_same_order(
    tmp_path: Path, start: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, list[Tensor]] = {}
    own = sft.weighted_loss
    for attention in ("topk", "dense"):

        def noted(model: Any, ids: Tensor, worth: Tensor, to: str = attention) -> Any:
            read.setdefault(to, []).append(ids.clone())
            return own(model, ids, worth)

        monkeypatch.setattr(sft, "weighted_loss", noted)
        assert train(start, text, tmp_path / attention, attention=attention)
    assert len(read["topk"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(read["topk"], read["dense"], strict=True))
    one, other = weights(tmp_path / "topk"), weights(tmp_path / "dense")
    assert any(not torch.allclose(one[n], other[n], atol=1e-5) for n in one)
    monkeypatch.setattr(sft, "weighted_loss", own)
    assert train(start, text, tmp_path / "all", ratio=1)
    every = weights(tmp_path / "all")
    # At a ratio of one nothing is left out; weights are kept in bf16.
    assert all(torch.allclose(every[n], other[n], atol=4e-3, rtol=1e-2) for n in every)


def test_a_killed_training_comes_to_the_same_weights_bit_for_bit(
    tmp_path: Path, start: Path, text: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    own, calls = sft.weighted_loss, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return own(*args)

    monkeypatch.setattr(sft, "weighted_loss", dying)
    original = loops.Loop.run
    monkeypatch.setattr(loops.Loop, "run", lambda self, *a: original(replace(self, saved=0.0), *a))
    with pytest.raises(Killed):
        train(start, text, tmp_path)
    assert not (tmp_path / "model").exists()
    assert train(start, text, tmp_path)
    assert len(calls) == 3 + 2
    one, other = weights(tmp_path), weights(trained)
    assert all(torch.equal(one[n], other[n]) for n in one)
    # What is done is not done again.
    assert train(start, text, tmp_path) and len(calls) == 5


def test_another_recipe_in_the_same_folder_is_refused(
    start: Path, text: Path, trained: Path
) -> None:
    for change in ({"ratio": "10%"}, {"attention": "dense"}, {"recipe": replace(RECIPE, steps=5)}):
        with pytest.raises(InputError, match="begun with another recipe"):
            train(start, text, trained, **change)


def test_a_model_of_other_books_is_not_taken_for_one_of_these(
    start: Path, trained: Path, tmp_path: Path
) -> None:
    with lzma.open(tmp_path / "books-train.jsonl.xz", "wt") as file:
        file.write(json.dumps({"title": "a", "author": "b", "text": "Another book."}) + "\n")
    with pytest.raises(InputError, match="begun with another recipe"):
        train_sft(start, tmp_path, trained, attention="topk", ratio="20%", recipe=RECIPE)


def test_ratios_are_shares_of_the_visible_keys() -> None:
    assert ratio_of("topk", "1%") == Fraction(1, 100) == ratio_of("topk", 0.01)
    assert ratio_of("topk", "100%") == 1 and ratio_of("dense", None) is None
    for wrong in (0, "0%", -0.1, 1.5, "101%", "nan", "inf", "1/0", "most", ""):
        with pytest.raises(InputError, match="ratio must"):
            ratio_of("topk", wrong)
    with pytest.raises(InputError, match="needs a ratio"):
        ratio_of("topk", None)
    with pytest.raises(InputError, match="dense attention keeps all"):
        ratio_of("dense", "1%")
    with pytest.raises(InputError, match="attention must be topk or dense; got 'sparse'"):
        ratio_of("sparse", "1%")


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma3_text", {"sliding_window": 8}, "layer 0 has a sliding window"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "sinks"),
        ("mamba", {"state_size": 4}, "does not attend through"),
    ],
)
def test_models_that_cannot_be_trained_so_are_named(
    kind: str, changes: dict[str, Any], reason: str
) -> None:
    model = tiny(kind, **changes)
    with pytest.raises(InputError, match=f"{type(model).__name__} cannot be trained.*{reason}"):
        require_trainable(model, Fraction(1, 100))
    with training_attention(model, None):
        pass


@pytest.mark.parametrize("padded", [False, True])
def test_a_layer_attends_to_its_best_keys_alone(padded: bool) -> None:
    model, inputs = tiny("llama"), prompt(2, 24, padded)
    ratio, seen = Fraction(1, 5), list[bool]()

    def attend(call: Any) -> Tensor:
        start = torch.tensor([7, 0]) if padded else None
        kept = keys_kept(ratio, 24, 24, start=start)
        want = topk_attention(
            call.queries, call.keys, call.values, kept, start=start, scaling=call.scaling, backend="torch"
        )  # fmt: skip
        out = TopkAttention(ratio)(call)
        seen.append(torch.allclose(out, want.transpose(1, 2), atol=1e-5))
        return out

    with switched_attention(model, attend, evaluation=False):
        loss = model(**inputs, use_cache=False).logits.square().mean()
    loss.backward()
    assert seen == [True, True]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # Left as it was.
    dense = model(**inputs, use_cache=False).logits
    assert not torch.allclose(dense.square().mean(), loss)


def test_a_loss_that_is_nan_names_the_step(
    tmp_path: Path, start: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = sft.weighted_loss, []

    def broken(*args: Any) -> Any:
        calls.append(1)
        loss, answer = own(*args)
        return (loss * float("nan") if len(calls) == 3 else loss), answer

    monkeypatch.setattr(sft, "weighted_loss", broken)
    with pytest.raises(InputError, match=r"step 2: loss is nan.*kept in .*step-2-"):
        train(start, text, tmp_path)
    assert not (tmp_path / "model").exists()


def test_scores_that_are_nan_name_the_step(
    tmp_path: Path, start: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = sft.weighted_loss, []

    def broken(model: Any, *batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise InputError("scores hold NaN")
        return own(model, *batch)

    monkeypatch.setattr(sft, "weighted_loss", broken)
    with pytest.raises(InputError, match=r"step 1: scores hold NaN; stopped.*step-1-"):
        train(start, text, tmp_path)


# The difference


def assert_made_again(start: Path, trained: Path, out: Path) -> Path:
    """The file of a difference, whose model is the trained one but for the error that it names."""
    (file,) = (trained / "difference").iterdir()
    done = json.loads((trained / "done.json").read_text())
    assert file.name == done["difference"] and file.stat().st_size == done["bytes"] <= MOST
    before, after = load(start)[0].state_dict(), weights(trained)
    again = load(rebuild(start, file, out))[0].state_dict()
    off = sum(float((again[n] - after[n]).square().sum()) for n in after)
    whole = sum(float((after[n] - before[n]).square().sum()) for n in after)
    assert (off / whole) ** 0.5 == pytest.approx(done["error"], abs=0.03) and done["error"] < 0.1
    return file


def test_a_difference_makes_the_model_again(tmp_path: Path, start: Path, trained: Path) -> None:
    with safe_open(assert_made_again(start, trained, tmp_path / "made"), "pt") as opened:
        told = opened.metadata()
    assert (told["attention"], told["ratio"], told["kind"]) == ("topk", "1/5", "difference")


@pytest.mark.gpu
@gpu
def test_a_difference_of_a_training_on_a_gpu_makes_the_model_again(
    tmp_path: Path, start: Path, text: Path
) -> None:
    assert train(start, text, tmp_path / "trained", device="cuda")
    assert_made_again(start, tmp_path / "trained", tmp_path / "made")


def test_a_difference_is_of_one_start(tmp_path: Path, start: Path, trained: Path) -> None:
    (file,) = (trained / "difference").iterdir()
    other = tiny("qwen3", seed=5, **READS_REFERENCE)
    with pytest.raises(InputError, match="is of another model"):
        apply_difference(other.to(torch.bfloat16), file)
    with pytest.raises(InputError, match="is no difference that"):
        apply_difference(other, start / "model.safetensors")
    (tmp_path / "half.safetensors").write_bytes(file.read_bytes()[:99])
    with pytest.raises(InputError, match="cannot read"):
        apply_difference(other, tmp_path / "half.safetensors")


@pytest.mark.parametrize("most", [30_000, 12_000])
def test_a_difference_is_as_small_as_asked_and_says_its_error(tmp_path: Path, most: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Linear(128, 128))
    start = {n: x.clone() for n, x in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-3 * torch.randn_like(p)
    path, error = save_difference(start, model, tmp_path, "d", most, kind="difference")
    assert path.stat().st_size <= most
    # Of Gaussian numbers at R bits each no code is nearer than 2^-R.
    bits = 8 * (most - 4096 - 1024) / sum(x.numel() for x in start.values())
    assert 2**-bits < error < 1.6 * 2**-bits
    with pytest.raises(InputError, match="does not fit"):
        save_difference(start, model, tmp_path, "d", 5_200, kind="difference")


def test_rates_warm_up_and_fall_in_a_line() -> None:
    rates = np.array([RECIPE.rate(step) for step in range(RECIPE.steps)])
    assert rates.argmax() in (1, 2) and rates[1] == RECIPE.peak
    assert (np.diff(rates[1:]) <= 0).all() and rates[-1] > 0.1 * RECIPE.peak


def test_time_counts_from_the_call_on_and_trainings_share_tokens(
    start: Path, tmp_path: Path
) -> None:
    def call(out: Path, tokens: Path | None = None) -> bool:
        return train_sft(
            start, None, out, attention="dense", recipe=RECIPE, stop_after=0, tokens=tokens,
            report=lambda line: None,
        )  # fmt: skip

    one, other = tmp_path / "one", tmp_path / "other"
    # The first call makes tokens, and has no time left for a step; they are there for another training.
    assert not call(one)
    assert (one / "text" / "ends.npy").exists() and not (one / "checkpoints").exists()
    assert not call(other, one)
    assert (other / "checkpoints").exists() and not (other / "text").exists()
