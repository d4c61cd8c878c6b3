"""Steps of generate at fixed shapes give what the same steps give kernel by kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from device import gpu
from steps import (
    LENGTH,
    Forced,
    attached,
    between,
    both,
    chosen,
    close,
    forced,
    half,
    prompt,
    to_the_bit,
    tokens,
)
from tiny import lightning_for
from topkit.experiments.decode.graph_capture import Parts
from topkit.indexers import growing
from topkit.indexers.lasting import lasting

pytest.importorskip("triton")


SMALL = (
    "exact()",
    "quest(page_size=4)",
    "keep(refine(sign(), factor=2), sink=1)",
    "keep(sign(), sink=1, window=2)",
    "top_p(quantized(dtype='int4'), mass=0.5)",
)
# Recipes that a graph holds as well, of many small kernels.
OTHERS = (
    "degraded(0.5)",
    "degraded(0.6, miss='boundary', fill='next')",
    "moba(page_size=4)",
    "streaming_llm(sink=2)",
    "random()",
    "keep(quest(page_size=4), sink=1, window=1)",
    "keep(shared(exact(), per='layer'), sink=1)",
    "keep(top_p(exact(), mass=0.5), window=2)",
    "refine(shared(sign()), factor=2)",
    "shared(quest(page_size=4))",
    "sampled(keep(sign(), sink=1))",
    "keep(sign(center=True, hadamard=True), sink=1)",
    "shared(quantized(dtype='mxfp4', hadamard=True))",
    "quantized(dtype='nvfp4', center=True)",
)


@pytest.fixture(scope="module")
def model() -> Any:
    return half()


# --- the same, step by step


@pytest.mark.parametrize(
    "spec",
    [
        "shared(sign())",
        *SMALL[:2],
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (
                "sign()",
                "shared(quantized(dtype='int4', scale='pow2'), how='max')",
                "quantized(hadamard=True)",
                *SMALL[2:],
                *OTHERS,
            )
        ),
    ],
)
def test_steps_are_those_of_the_kernels(model: Any, spec: str) -> None:
    given = prompt(2, padded=True) if spec.startswith("shared") else prompt()
    ours, theirs, captured = both(model, lambda _: forced(model, given, 11), spec=spec)
    close(ours, theirs)
    # All but the first after the prompt, and the one that moves the cache.
    assert captured == 10 - 2
    other = forced(model, given, 11)
    assert (other - ours).abs().max() > 0.1, "dense attention gives the same"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapped", "dtype"), [("{}", "fp8"), ("shared({})", "fp8"), ("{}", "mxfp4")]
)
def test_an_indexer_that_reads_what_the_layer_was_given(
    wrapped: str, dtype: str, tmp_path: Path
) -> None:
    deep, spec = half(2), wrapped.format(lightning_for(tmp_path, heads=3, dim=64, dtype=dtype))
    given = prompt(2, padded=True)
    ours, theirs, captured = both(deep, lambda _: forced(deep, given, 11), spec=spec)
    close(ours, theirs)
    assert captured == 10 - 2
    assert (forced(deep, given, 11) - ours).abs().max() > 0.1, "dense attention gives the same"


@pytest.mark.slow
def test_several_layers() -> None:
    deep = half(2, "llama")
    ours, theirs, captured = both(deep, lambda _: forced(deep, prompt(), 12), k=200)
    close(ours, theirs)
    assert captured == 11 - 2
    # Where all keys are read, it is dense attention.
    close(ours, forced(deep, prompt(), 12))


@pytest.mark.slow
@to_the_bit
@pytest.mark.parametrize("way", [{}, {"do_sample": True, "temperature": 1.5}], ids=str)
def test_the_same_tokens_are_preferred_and_drawn(model: Any, way: dict[str, Any]) -> None:
    ours, theirs, captured = both(model, lambda _: chosen(model, prompt(), 10, **way))
    assert torch.equal(ours, theirs)
    assert captured == 9 - 2


@pytest.mark.slow
def test_room_that_runs_out_is_made_again_and_again(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(growing, "ROUND", 2)
    ours, theirs, captured = both(model, lambda _: forced(model, prompt(), 20))
    close(ours, theirs)
    # It is full at 24, 28, 32 and 38 slots.
    assert captured == 19 - 4


@pytest.mark.slow
def test_a_prompt_of_one_token(model: Any) -> None:
    given = {"input_ids": tokens(2, 1)}
    ours, theirs, captured = both(model, lambda _: forced(model, given, 8), k=3)
    close(ours, theirs)
    assert captured == 7 - 1


# --- what comes before, between and after


@pytest.mark.slow
def test_a_cache_goes_on_in_every_way(model: Any) -> None:
    """Turns, direct calls, a crop and dense attention at the end find the state that they expect."""

    def run(running: Any) -> Tensor:
        cache: Any = DynamicCache(config=model.config)
        said = []
        ids = tokens()
        for new in (5, 4):
            said.append(forced(model, {"input_ids": ids, "past_key_values": cache}, new))
            ids = torch.cat([ids, Forced.said[:1, ids.shape[1] : ids.shape[1] + new + 3]], 1)
        with torch.no_grad():
            for token in tokens(1, 3, seed=4).split(1, 1):
                said.append(model(token, past_key_values=cache).logits.float().mT[None, :, :, 0])
            cache.crop(-6)
            assert {layer.keys.shape[2] for layer in cache.layers} == {cache.get_seq_length()}
            for token in tokens(1, 2, seed=5).split(1, 1):
                said.append(model(token, past_key_values=cache).logits.float().mT[None, :, :, 0])
        ids = tokens(1, cache.get_seq_length() + 1, seed=6)
        said.append(forced(model, {"input_ids": ids, "past_key_values": cache}, 4))
        running.detach()
        assert type(cache.layers[0]) is transformers.cache_utils.DynamicLayer
        ids = tokens(1, cache.get_seq_length() + 1, seed=7)
        said.append(forced(model, {"input_ids": ids, "past_key_values": cache}, 3))
        return torch.cat(said)

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    assert captured >= 6


@pytest.mark.slow
def test_a_crop_between_two_steps(model: Any) -> None:
    def run(_: Any) -> Tensor:
        cache = DynamicCache(config=model.config)
        given = {"input_ids": tokens(), "past_key_values": cache}
        crop = between(LENGTH + 5, lambda: cache.crop(-2))
        return forced(model, given, 9, stopping_criteria=crop, use_cache=True)

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    # The one after the crop is not captured either: the index is still to be cut. Nor are any after it
    # where transformers still gives a mask, as 5.17 does, which is then longer than the cache.
    assert captured in (8 - 2, 3)


@pytest.mark.slow
def test_a_copy_between_two_steps_is_a_cache_of_its_own(model: Any) -> None:
    def run(_: Any) -> Tensor:
        cache, copies = DynamicCache(config=model.config), []
        given = {"input_ids": tokens(), "past_key_values": cache}
        taken = between(LENGTH + 4, lambda: copies.append(copy.deepcopy(cache)))
        said = [forced(model, given, 8, stopping_criteria=taken)[:, :, None]]
        assert copies[0].get_seq_length() == LENGTH + 3
        with torch.no_grad():
            for token in tokens(1, 3, seed=4).split(1, 1):
                for one in (copies[0], cache):
                    said.append(model(token, past_key_values=one).logits.float()[None])
        return torch.cat(said)

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    # The one after the copy is not captured either: the index and its copy had their codes in common.
    assert captured == 7 - 2


def test_detached_between_two_steps(model: Any) -> None:
    before = forced(model, prompt(), 8)

    def run(running: Any) -> Tensor:
        return forced(model, prompt(), 8, stopping_criteria=between(LENGTH + 4, running.detach))

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    assert captured == 3 - 1
    assert "forward" not in vars(model)
    close(forced(model, prompt(), 8), before)


# --- graphs


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("spec", "layers", "k"),
    [
        ("shared(sign())", 1, 5),
        ("shared(sign())", 2, 200),
        ("sign()", 1, 5),
        ("shared(quantized(dtype='int4', hadamard=True))", 1, 5),
        ("lightning", 1, 5),
        ("lightning", 2, 200),
        *((spec, layers, k) for spec in (*SMALL, *OTHERS) for layers, k in ((1, 5), (2, 200))),
    ],
)
def test_replays_give_what_kernels_give_and_call_no_module(
    spec: str, layers: int, k: int, tmp_path: Path
) -> None:
    model, calls, given = half(layers), [], prompt(3, padded=True)
    spec = lightning_for(tmp_path, heads=3, dim=64, dtype="fp8") if spec == "lightning" else spec
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with attached(model, spec, k, cuda_graph=False):
        calls.clear()
        theirs = forced(model, given, 40)
    assert len(calls) == 40
    with attached(model, spec, k) as mine:
        calls.clear()
        ours = forced(model, given, 40)
    close(ours, theirs)
    # The first step, the one that moved the cache, and for some pages one more that moved these.
    alone = 39 - mine.captured
    assert alone in (2, 3)
    # The prompt, and those; and two calls for the graph behind each of them.
    assert len(calls) == 1 + alone + 2 * alone


def test_dense_attention_is_captured_alike(model: Any) -> None:
    """What steps through an indexer are compared with: the same step, over all keys."""
    given = prompt(2, padded=True)
    ours, theirs, captured = both(model, lambda _: forced(model, given, 11), spec="dense", k=None)
    close(ours, theirs)
    assert captured == 10 - 2
    close(ours, forced(model, given, 11))


def test_a_loop_of_ones_own_is_captured_too(model: Any) -> None:
    ids = tokens(1, 6)

    def run(running: Any) -> Tensor:
        said, cache = [], DynamicCache(config=model.config)
        with torch.no_grad(), running.generating(6):
            model(ids, past_key_values=cache)
            for token in range(5):
                place = torch.full((1, 1), 6 + token, device=ids.device)
                new = Forced.said[:1, token : token + 1]
                step = {"input_ids": new, "position_ids": place, "past_key_values": cache}
                said.append(model(**step, use_cache=True).logits)
        return torch.cat(said)

    ours, theirs, captured = both(model, run, spec="exact()", k=3)
    close(ours, theirs)
    assert captured == 5 - 1


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("spec", ["shared(sign())", *SMALL, *OTHERS])
def test_a_long_context_is_captured_too(spec: str) -> None:
    """Long enough that codes are sampled and filtered, not searched at once."""
    model = half(1, max_position_embeddings=1 << 15)
    ids = tokens(2, 20_000)
    Forced.said, short = tokens(8, 20_100, seed=9), Forced.said
    try:
        given = {"input_ids": ids}
        ours, theirs, captured = both(model, lambda _: forced(model, given, 12), spec=spec, k=64)
    finally:
        Forced.said = short
    close(ours, theirs)
    assert captured == 11 - 1


@gpu
@pytest.mark.gpu
def test_the_memory_of_a_graph_is_let_go() -> None:
    model, given = half(2), prompt(2)
    with attached(model):
        forced(model, given, 8)  # workspaces of the libraries stay
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            forced(model, given, 8)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)


@gpu
@pytest.mark.gpu
def test_a_capture_has_the_room_that_torch_keeps_for_later() -> None:
    """Under a share of the GPU: what a first run leaves behind stands in no graph's way."""
    device, numbers = torch.device("cuda", torch.cuda.current_device()), 1 << 28
    torch.cuda.empty_cache()
    share = torch.cuda.memory_allocated(device) + 7 * numbers
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(share / total, device)
    try:
        parts, ones = Parts.of(lambda: torch.ones(numbers, device=device), device)
        parts.replay()
        assert ones.sum() == numbers
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@gpu
@pytest.mark.gpu
def test_a_graph_holds_what_lasting_functions_gave_it() -> None:
    """Though other results take its place: a graph reads it where it stood."""
    device = torch.device("cuda", torch.cuda.current_device())

    @lasting(1)
    def filled(value: float) -> Tensor:
        return torch.full((1 << 20,), value, device=device)

    parts, doubled = Parts.of(lambda: 2 * filled(3.0), device)
    others = [filled(value) for value in (5.0, 7.0)]
    parts.replay()
    assert (doubled == 6).all() and len(others) == 2
