"""Caches that an attached model goes on with, in turns, copies and calls of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import topkit
from generation import Slowly, assert_same, generated
from tiny import lightning_for, prompt
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach
from topkit.experiments.evaluate.shared_prefix import forward, prefill
from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.runs.cells import Cell
from topkit.indexers import Step
from topkit.indexers.budget import parse_budget


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)"])
def test_turns_go_on_with_one_cache(model: Any, spec: str) -> None:
    first = prompt()["input_ids"]
    more = prompt(length=9, seed=3)["input_ids"]
    cache, fresh = DynamicCache(), {}
    with attach(model, spec, k=6):
        said = generated(model, {"input_ids": first, "past_key_values": cache}, 6)[0]
        both = torch.cat([said, more], 1)
        turn = generated(model, {"input_ids": both, "past_key_values": cache}, 6)
    with Slowly(model, spec, 6, until=24) as slow:
        cache = DynamicCache()
        said_slowly = generated(model, {"input_ids": first, "past_key_values": cache}, 6)[0]
        slow.until = both.shape[1]
        fresh = generated(model, {"input_ids": both, "past_key_values": cache}, 6)
    assert torch.equal(said, said_slowly)
    assert_same(turn, fresh)


def test_new_tokens_alone_go_on_too(model: Any) -> None:
    """generate also takes the new tokens without those cached, with the mask of all."""
    first, more = prompt()["input_ids"], prompt(length=9, seed=3)["input_ids"]
    both = torch.cat([first, more], 1)
    with attach(model, "quest(page_size=4)", k=6), torch.no_grad():
        caches = [model(first, use_cache=True).past_key_values for _ in range(2)]
        whole = generated(model, {"input_ids": both, "past_key_values": caches[0]})
        given = {"input_ids": more, "attention_mask": torch.ones_like(both)}
        rest = generated(model, {**given, "past_key_values": caches[1]})
    assert_same((torch.cat([first, rest[0]], 1), rest[1]), whole)


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)"])
def test_a_copied_cache_has_an_index_of_its_own(model: Any, spec: str) -> None:
    ids = prompt()["input_ids"]
    tails = [prompt(length=5, seed=seed)["input_ids"] for seed in (3, 4)]

    def after(cache: DynamicCache, tail: Tensor) -> Tensor:
        steps = tail.split(1, 1)
        return torch.cat([model(step, past_key_values=cache).logits for step in steps], 1)

    with attach(model, spec, k=6), torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        model(ids[:, -1:], past_key_values=cache)
        late, *copies = (copy.deepcopy(cache) for _ in range(3))
        steps = [
            [after(mine, tail[:, i : i + 1]) for mine, tail in zip(copies, tails, strict=True)]
            for i in range(5)
        ]
        copied = [torch.cat(column, 1) for column in zip(*steps, strict=True)]
        for tail, logits in zip(tails, copied, strict=True):
            fresh = model(ids[:, :-1], use_cache=True).past_key_values
            model(ids[:, -1:], past_key_values=fresh)
            torch.testing.assert_close(after(fresh, tail), logits)
    # Another attachment builds an index of its own.
    with attach(model, "exact()", k=1000), torch.no_grad():
        dense = after(late, tails[0])
        fresh = copy.deepcopy(cache)
        torch.testing.assert_close(after(fresh, tails[0]), dense)
    assert not torch.allclose(dense, copied[0], atol=1e-2)


def test_attachments_in_turn_share_no_index(model: Any) -> None:
    ids = prompt()["input_ids"]
    with attach(model, "exact()", k=6), torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        model(ids[:, -1:], past_key_values=cache)
        late = copy.deepcopy(cache)
    for held in (cache, late):
        with attach(model, "sign()", k=6, observe=True) as attached, torch.no_grad():
            model(ids[:, :1], past_key_values=held)
        # 25 slots, in room for 32.
        assert set(attached.fidelity()["index_bytes"].to_pylist()) == {32 * 2 * 32 / 8}


def test_direct_calls(model: Any) -> None:
    """Several tokens at a time are prompt, one is not; what comes after a dense prefill may be sparse."""
    ids = prompt()["input_ids"]
    with torch.no_grad(), Slowly(model, "sign()", 6, until=20):
        cache = model(ids[:, :20], use_cache=True).past_key_values
        slow = model(ids[:, 20:], past_key_values=cache).logits
    with torch.no_grad(), attach(model, "sign()", k=6):
        cache = model(ids[:, :12], use_cache=True).past_key_values
        model(ids[:, 12:20], past_key_values=cache)
        fast = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(20, 24)]
    torch.testing.assert_close(torch.cat(fast, 1), slow, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        cache = model(ids[:, :20], use_cache=True).past_key_values
        with attach(model, "sign()", k=6, sparse_prefill=True):
            late = model(ids[:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(late, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)", "sampled()", "degraded(0.5)"])
def test_agrees_with_the_driver_of_studies(model: Any, spec: str) -> None:
    """A question after a dense prefix: `forward` over shared rows, and an attached model."""
    ids, indexer = prompt(2)["input_ids"], topkit.indexer(spec)
    ids[1, :16] = ids[0, :16]
    prefix = prefill(model, ids[0, :16].tolist())
    indices = {}
    for layer, past in prefix.items():
        step = Step(layer, past.scaling, kv_heads=2, inputs={"cache": past.cache})
        indices[layer] = indexer.build(past.cache.keys, step.given_to(indexer))
    cell = Cell(indexer, parse_budget(6))
    stream = Stream([cell], 24, indices, 0).fork(torch.tensor([0, 0]))
    theirs = forward(model, prefix, [stream], ids[:, 16:], 8)
    with torch.no_grad():
        cache = model(ids[:, :16], use_cache=True).past_key_values
        with attach(model, spec, k=6, sparse_prefill=True):
            ours = model(ids[:, 16:], past_key_values=cache).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_refuses_what_happened_behind_its_back(model: Any, tmp_path: Any) -> None:
    ids = prompt()["input_ids"]
    with attach(model, "sign()", k=4), torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :-2], layer.values[:, :, :-2]
        with pytest.raises(InputError, match="25 slots and its cache 23"):
            model(ids[:, :1], past_key_values=cache)
    cache, late = model(ids, use_cache=True).past_key_values, r"hidden, rope of the 24 tokens"
    with attach(model, lightning_for(tmp_path), k=4), pytest.raises(InputError, match=late):
        model(ids[:, :1], past_key_values=cache)


def test_a_cache_that_is_followed_grows_in_place(model: Any) -> None:
    """A step costs what it adds: the slots that are there seldom move."""
    ids, places = prompt()["input_ids"], []
    cache: Any = DynamicCache(config=model.config)
    with attach(model, "sign", k=4), torch.no_grad():
        model(ids, past_key_values=cache)
        for token in range(2, 42):
            model(torch.tensor([[token]]), past_key_values=cache)
            places.append((cache.layers[0].keys.data_ptr(), cache.layers[0].values.data_ptr()))
    assert len(set(places)) <= 3
    assert cache.layers[0].keys.shape[2] == 24 + 40


def test_a_cache_begun_in_inference_mode_goes_on_outside(model: Any) -> None:
    cache: Any = DynamicCache(config=model.config)
    given = prompt()
    with attach(model, "sign()", k=6):
        with torch.inference_mode():
            model(given["input_ids"], past_key_values=cache)
            for token in (3, 4):
                model(torch.tensor([[token]]), past_key_values=cache)
        ids = torch.cat([given["input_ids"], torch.tensor([[3, 4, 5]])], 1)
        found = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert found.shape == (1, 24 + 3 + 4)


def test_a_copy_made_while_attached_is_given_back_too(model: Any) -> None:
    cache: Any = DynamicCache(config=model.config)
    with attach(model, "sign()", k=6), torch.no_grad():
        model(prompt()["input_ids"], past_key_values=cache)
        model(torch.tensor([[3]]), past_key_values=cache)
        twin = copy.deepcopy(cache)
    kinds = {type(layer).__module__ for layer in (*cache.layers, *twin.layers)}
    assert kinds == {"transformers.cache_utils"}
    assert torch.equal(twin.layers[0].keys, cache.layers[0].keys)
