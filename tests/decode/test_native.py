"""Models with an indexer of their own, attached: its lists as an indexer, and any other in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from generation import WAYS, assert_same, generated
from own_indexers import OWN, with_indexer
from tiny import prompt, tiny
from topkit import attach
from topkit.errors import InputError
from topkit.experiments.train.lightning import export_weights


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("k", [8, 100])
def test_its_own_lists_are_the_model_as_it_is(kind: str, k: int) -> None:
    model, given = with_indexer(kind), prompt(2, padded=True)
    before = generated(model, given, 12)
    with attach(model, "native", k=k):
        assert_same(generated(model, given, 12), before)
    with attach(model, "native", k=k, sparse_prefill=True):
        assert_same(generated(model, given, 12), before)
    assert_same(generated(model, given, 12), before)


@pytest.mark.parametrize("way", ["sampling", "beams", "beam sampling"])
def test_however_it_generates(way: str) -> None:
    model, given = with_indexer("glm_moe_dsa"), prompt(2, padded=True)
    before = generated(model, given, 12, **WAYS[way])
    with attach(model, "native", k=8):
        assert_same(generated(model, given, 12, **WAYS[way]), before)


@pytest.mark.parametrize("kind", OWN)
def test_another_recipe_replaces_its_lists(kind: str) -> None:
    """Exact over all keys, in prefill and decode, is the same model that lets every key through."""
    given = prompt(2, padded=True)
    model, whole = with_indexer(kind), with_indexer(kind, index_topk=1000)
    whole.load_state_dict(model.state_dict())
    wanted = generated(whole, given, 12)
    assert not torch.equal(generated(model, given, 12)[1][-1], wanted[1][-1])
    with attach(model, "exact", k=1000, sparse_prefill=True):
        assert_same(generated(model, given, 12), wanted)
    ids = torch.cat([given["input_ids"], wanted[0][:, 24:]], 1)[1:]
    with attach(model, "exact", k=1000, sparse_from_slot=0), torch.no_grad():
        logits = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.allclose(logits, whole(input_ids=ids).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", ["sign", "quest(page_size=4)", "reuse(sign(), every=2)"])
def test_recipes_decode_behind_shared_lists(spec: str) -> None:
    model, given = with_indexer("glm_moe_dsa"), prompt(2, padded=True)
    own = generated(model, given, 6)
    with attach(model, spec, k=4) as attached:
        said = generated(model, given, 6)
        assert attached.layers == [0, 1, 2, 3]
    assert torch.equal(said[0][:, :25], own[0][:, :25])  # the prompt attends as ever
    assert not torch.equal(said[1][-1], own[1][-1])


def test_a_smaller_k_keeps_the_best_of_each_list() -> None:
    model, given = with_indexer("glm_moe_dsa"), prompt()
    best = with_indexer("glm_moe_dsa", index_topk=3)
    best.load_state_dict(model.state_dict())
    wanted = generated(best, given, 10)
    with attach(model, "native", k=3, sparse_prefill=True):
        assert_same(generated(model, given, 10), wanted)


def test_what_it_selected_is_judged_while_it_decodes() -> None:
    model, given = with_indexer("deepseek_v32"), prompt()
    with attach(model, "native", k=8, observe=True) as attached:
        generated(model, given, 4)
        rows = attached.fidelity().to_pylist()
    assert {row["indexer"] for row in rows} == {"native()"}
    assert {row["layer"] for row in rows} == {0, 1} and 0 < min(row["mass"] for row in rows) < 1


def test_weights_of_some_layers_alone_want_the_others_to_reuse(tmp_path: Path) -> None:
    """IndexShare, by the exported weights of its indexers: refused at once where a layer has none."""
    model, given = with_indexer("glm_moe_dsa"), prompt()
    spec = f"lightning(weights={str(export_weights(model, tmp_path))!r})"
    with pytest.raises(
        InputError, match=r"for layers 0, 2, and none for layers 1, 3 of Glm.*layers=\(0, 2\)"
    ):
        attach(model, spec, k=8)
    before = generated(model, given, 8)
    with attach(model, f"reuse({spec}, layers=(0, 2))", k=8):
        assert_same(generated(model, given, 8), before)
    with attach(model, spec, k=8, layers=[0, 2]):
        assert_same(generated(model, given, 8), before)


def test_layers_without_a_list_are_refused_by_name() -> None:
    model: Any = tiny()
    with pytest.raises(InputError, match=r"native\(\) keeps what a .* Qwen3ForCausalLM has none"):
        attach(model, "native", k=4)
    with pytest.raises(InputError, match=r"layer 1 of Dots3NoteForCausalLM sees a window"):
        attach(with_indexer("dots3_note_text"), "native", k=8, layers=[1])
    kinds = ["indexed_attention", "full_attention"]
    mixed = with_indexer(
        "dots3_note_text", num_hidden_layers=2, layer_types=kinds, per_layer_config={}
    )
    with pytest.raises(InputError, match=r"layer 1 of Dots3NoteForCausalLM has no indexer"):
        attach(mixed, "native", k=8, layers=[1])
    before = generated(mixed, prompt(), 6)
    with attach(mixed, "native", k=8) as attached:
        assert attached.layers == [0]
        assert_same(generated(mixed, prompt(), 6), before)
