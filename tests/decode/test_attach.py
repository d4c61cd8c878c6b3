"""An attached model generates what a slow rendering of the same attention generates."""

from __future__ import annotations

import copy
import math
import threading
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

import topkit
from generation import CHOICES, WAYS, Slowly, assert_same, generated
from tiny import DSA, PAD, lightning_for, prompt, tiny
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach
from topkit.experiments.decode.cache import IndexedLayer
from topkit.experiments.train.lightning import export_weights
from topkit.indexers import INDEXERS


@pytest.mark.parametrize("spec", CHOICES)
@pytest.mark.parametrize("way", WAYS)
def test_generates_by_the_definition(model: Any, spec: str, way: str) -> None:
    given = prompt(2, padded=True)
    with Slowly(model, spec, 6, until=24):
        slow = generated(model, given, 8, **WAYS[way])
    with attach(model, spec, k=6):
        fast = generated(model, given, 8, **WAYS[way])
    assert_same(fast, slow)
    if way == "greedy":
        dense = generated(model, given, 8)
        assert max((a - b).abs().max() for a, b in zip(dense[1], fast[1], strict=True)) > 1e-2


def need(spec: str) -> None:
    """Skip where the package that an indexer wants is not installed."""
    if spec.startswith("faiss"):
        pytest.importorskip("faiss")


def speculating(model: Any) -> dict[str, dict[str, Any]]:
    return {
        "prompt lookup": {"prompt_lookup_num_tokens": 4},
        "assisted": {"assistant_model": tiny(num_hidden_layers=1)},
        "assisted by itself": {"assistant_model": copy.deepcopy(model)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)", "faiss_ivf()", "exact()"])
def test_drafts_change_nothing(model: Any, spec: str) -> None:
    """Prompt lookup and assistants crop the cache; their first call brings the prompt and drafts."""
    need(spec)
    given = prompt()
    given["input_ids"][0, 12:] = given["input_ids"][0, :12]
    ways = speculating(model)
    with attach(model, spec, k=6):
        plain = generated(model, given, 20)[0]
        for name, way in ways.items():
            assert torch.equal(generated(model, given, 20, **way)[0], plain), name
        chunked = generated(model, given, 20, prefill_chunk_size=5)[0]
        assert torch.equal(chunked, plain)


def test_without_a_cache_the_same(model: Any) -> None:
    given = prompt(2, padded=True)
    with attach(model, "sign()", k=6):
        assert_same(generated(model, given, use_cache=False), generated(model, given))


DENSE_WAYS = {**WAYS, "lookup": {"prompt_lookup_num_tokens": 3}}


@pytest.mark.parametrize("way", DENSE_WAYS)
def test_exact_with_all_keys_is_dense(model: Any, way: str) -> None:
    given = prompt() if way == "lookup" else prompt(2, padded=True)
    dense = generated(model, given, **DENSE_WAYS[way])
    with attach(model, "exact()", k=1000):
        assert_same(generated(model, given, **DENSE_WAYS[way]), dense)


@pytest.mark.parametrize(
    ("kind", "changes"),
    {
        "llama": {},
        "gemma3_text": {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "mistral": {"sliding_window": None},
        "llama4_text": {
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": 8,
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
        },
    }.items(),
)
def test_other_models(kind: str, changes: dict[str, Any]) -> None:
    model, given = tiny(kind, **changes), prompt(2, padded=True)
    dense = generated(model, given)
    with attach(model, "sign()", k=1000) as attached:
        assert attached.layers == ([1] if "layer_types" in changes else [0, 1])
        assert_same(generated(model, given), dense)
    with attach(model, "sign()", k=2):
        assert not torch.equal(generated(model, given)[1][-1], dense[1][-1])


def test_bfloat16() -> None:
    model, given = tiny().to(torch.bfloat16), prompt(2, padded=True)
    with attach(model, "sign()", k=6):
        ours = generated(model, given)[0]
    assert ours.shape == (2, 36)


@pytest.mark.parametrize("spec", CHOICES)
def test_sparse_prefill(model: Any, spec: str) -> None:
    given = prompt(2, padded=True)
    with Slowly(model, spec, 6, until=0):
        slow = generated(model, given, 5)
    with attach(model, spec, k=6, sparse_prefill=True):
        assert_same(generated(model, given, 5), slow)


def test_some_layers(model: Any) -> None:
    given = prompt()
    with attach(model, "exact()", k=4, layers=[1], observe=True) as attached:
        some = generated(model, given)
        assert set(attached.fidelity()["layer"].to_pylist()) == {1}
    with attach(model, "exact()", k=4):
        assert not torch.equal(generated(model, given)[1][-1], some[1][-1])


def test_k_in_per_cent_follows_the_context(model: Any) -> None:
    with attach(model, "sign()", k="25%", observe=True) as attached:
        generated(model, prompt(), 6)
    rows = attached.fidelity().to_pylist()
    assert {r["position"]: r["kept"] for r in rows} == {
        n: math.ceil((n + 1) / 4) for n in range(24, 29)
    }


BARE = {
    "degraded": "degraded(0.5)",
    "keep": "keep(sign(), sink=2, window=2)",
    "refine": "refine(quest(page_size=4), factor=2)",
    "shared": "shared(quantized(), per='layer')",
    "reuse": "reuse(sign())",
    "previous": "previous(sign())",
    "indexcache": "indexcache(sign())",
    "exact_group": "exact_group(sign())",
}
# Recipes of files, or of a model's own, have tests of their own.
OF_FILES = ("indices", "native", "hashattention", "projected")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in INDEXERS if name not in OF_FILES])
def test_every_indexer_generates(model: Any, name: str, tmp_path: Any) -> None:
    """Beams of padded rows, and drafts: as the indexer would on a fresh index at every call."""
    need(name)
    spec = BARE.get(name, f"{name}()")
    if name in ("lightning", "misa"):
        spec = lightning_for(tmp_path).replace("lightning(", f"{name}(")
    with attach(model, spec, k=6, observe=True) as attached:
        given = prompt(2, padded=True)
        beams = generated(model, given, 8, num_beams=2)[0]
        drafts = generated(model, prompt(), 12, prompt_lookup_num_tokens=3)[0]
        plain = generated(model, prompt(), 12)[0]
    # A graph that was cut is another graph; what a rejected draft chose stays the last step's choice.
    other = name in ("faiss_hnsw", "previous")
    assert beams.shape == (2, 32) and (torch.equal(drafts, plain) or other)
    table = attached.fidelity()
    assert set(table["call"].to_pylist()) == {1, 2, 3}
    assert max(table["kept"].to_pylist()) <= 6
    assert min(table["recall"].to_pylist()) >= 0


def test_the_hidden_states_of_a_prompt_are_not_kept(model: Any, tmp_path: Any) -> None:
    held: list[Any] = []
    note = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, given: held.append(weakref.ref(given["hidden_states"])), with_kwargs=True
    )
    with attach(model, lightning_for(tmp_path), k=4):
        cache = model(**prompt()).past_key_values
        assert cache.get_seq_length() == 24 and held[0]() is None
    note.remove()


@pytest.mark.parametrize(
    "spec", ["quest(page_size=4)", "degraded(0.5)", "sampled()", "faiss_hnsw()"]
)
def test_rows_do_not_depend_on_their_neighbours(spec: str, model: Any) -> None:
    need(spec)
    both = prompt(2, padded=True)
    alone = {"input_ids": both["input_ids"][:1, PAD:]}
    with attach(model, spec, k=6):
        in_batch = generated(model, both)[0][0, PAD:]
        assert torch.equal(generated(model, alone)[0][0], in_batch)


def test_sparse_models_of_their_own(tmp_path: Any) -> None:
    """A DSA model's own indexer chooses while it prefills; afterwards the attached one does."""
    model = tiny("deepseek_v32", **DSA)
    given = prompt()
    own = generated(model, given, 9)  # further on, index scores tie at the boundary
    spec = f"lightning(weights={str(export_weights(model, tmp_path))!r})"
    with attach(model, spec, k=8):
        assert_same(generated(model, given, 9), own)
    with attach(model, "exact()", k=1000):
        assert not torch.equal(generated(model, given, 9)[1][-1], own[1][-1])


def test_detach_restores_everything() -> None:
    model, given = tiny(), prompt()
    before = generated(model, given)
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    cache = DynamicCache()
    with pytest.raises(InputError, match="midway"), attach(model, "sign()", k=4) as attached:
        _break_off(model, {**given, "past_key_values": cache})
    attached.detach()
    assert model.config._attn_implementation == "sdpa"
    assert "generate" not in vars(model)
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    assert type(cache.layers[0]) is transformers.cache_utils.DynamicLayer
    assert not {"layer_index", "growing"} & vars(cache.layers[0]).keys()
    assert_same(generated(model, given), before)


def _break_off(model: Any, given: dict[str, Any]) -> None:
    generated(model, given)
    assert isinstance(given["past_key_values"].layers[0], IndexedLayer)
    raise InputError("midway")


def test_eager_models_stay_eager() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    with topkit.attach(model, "sign()", k=4):
        generated(model, prompt())
    assert model.config._attn_implementation == "eager"


def test_another_model_of_the_same_config_stays_dense() -> None:
    model = tiny()
    other = type(model)(model.config).eval()
    before = generated(other, prompt())
    with attach(model, "sign()", k=4):
        assert_same(generated(other, prompt()), before)


def test_two_threads_have_passes_of_their_own(model: Any) -> None:
    """Each with its prompt, its padding and its cache."""
    prompts = [prompt(2, length, padded=True, seed=length) for length in (12, 30, 19)]
    said: dict[int, Tensor] = {}
    with attach(model, "sign()", k=6):
        alone = [generated(model, given)[0] for given in prompts]

        def run(number: int) -> None:
            out = model.generate(**prompts[number], max_new_tokens=12, do_sample=False)
            said[number] = out

        for _ in range(2):
            threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(torch.equal(said[n], alone[n]) for n in range(3))
