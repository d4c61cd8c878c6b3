"""Copies and pickles of a model that is attached are plain models, and the original stays as it was."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from transformers.cache_utils import DynamicLayer

from generation import generated
from tiny import prompt, tiny
from topkit.experiments.decode.attach import attach
from topkit.experiments.model.copies import hook, replaced


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(model: Any) -> Any:
    twin = tiny(seed=9)
    twin.load_state_dict(model.state_dict())
    return twin


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle of torch": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save": saved,
    "average": lambda model: AveragedModel(model).module,
    "state": loaded,
    "a copy's copy": lambda model: copy.copy(copy.deepcopy(model)),
}


def traces(model: Any) -> list[Any]:
    """What an attachment adds: hooks, methods, the name of its attention."""
    hooks = [x for m in model.modules() for x in (*m._forward_hooks, *m._forward_pre_hooks)]
    names = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
    return [hooks, names, sorted(vars(model).keys() & {"generate", "forward"})]


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_decodes_as_if_never_attached(way: str) -> None:
    model, given = tiny(), prompt(2, padded=True)
    dense, before = generated(model, given)[0], traces(model)
    with attach(model, "random", 3):
        sparse = generated(model, given)[0]
        twin = COPIES[way](model)
        assert traces(twin) == before
        assert torch.equal(generated(twin, given)[0], dense)
        assert torch.equal(generated(model, given)[0], sparse)
        with attach(twin, "random", 3):
            assert torch.equal(generated(twin, given)[0], sparse)
    assert not torch.equal(sparse, dense)
    assert traces(model) == before
    assert torch.equal(generated(model, given)[0], dense)


def test_a_shallow_copy_shares_weights_and_one_config() -> None:
    model = tiny()
    with attach(model, "random", 3):
        twin = copy.copy(model)
        generated(model, prompt())
    assert twin.lm_head.weight is model.lm_head.weight and twin.model is not model.model
    assert {id(m.config) for m in twin.modules() if hasattr(m, "config")} == {id(twin.config)}
    assert twin.config is not model.config
    assert copy.copy(model).model is model.model  # as ever, when it is not attached


def test_hooks_and_methods_of_others_are_copied() -> None:
    model: Any = tiny()
    model.register_forward_hook(lambda *_: None)
    model.generate = lambda *_, **__: "mine"
    with attach(model, "random", 3):
        twin = copy.deepcopy(model)
        model(prompt()["input_ids"][:, :1])
        model(prompt()["input_ids"], use_cache=False)
    assert len(twin._forward_hooks) == 1 and twin.generate() == "mine"
    assert len(model._forward_hooks) == 1 and model.generate() == "mine"


@pytest.mark.filterwarnings("ignore:.*selected nothing")
def test_a_config_is_copied_and_saved_under_its_own_attention(tmp_path: Any) -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    with attach(model, "sign", 3):
        assert copy.deepcopy(model.config)._attn_implementation == "eager"
        assert pickle.loads(pickle.dumps(model.config))._attn_implementation == "eager"
        model.save_pretrained(tmp_path)
    assert "topkit" not in (tmp_path / "config.json").read_text()


def test_a_cache_is_pickled_as_its_own_kind() -> None:
    model, ids = tiny(), prompt()["input_ids"]
    with torch.no_grad(), attach(model, "sign", 3):
        cache = model(ids).past_key_values
        model(ids[:, :1], past_key_values=cache)
        twin = pickle.loads(pickle.dumps(cache))
        assert type(twin.layers[0]) is DynamicLayer and twin.get_seq_length() == 25
        assert torch.equal(twin.layers[1].keys, cache.layers[1].keys)
        ours = model(ids[:, 1:2], past_key_values=cache).logits
        assert torch.equal(model(ids[:, 1:2], past_key_values=twin).logits, ours)


def test_a_removed_hook_and_method_leave_nothing() -> None:
    part: Any = torch.nn.Linear(2, 2)
    before = sorted(vars(part))
    with (
        hook(part, "forward_hook", lambda *_: None, always_call=True),
        replaced(part, "forward", lambda own, x: own(x) + 1),
    ):
        assert sorted(vars(copy.deepcopy(part))) == before
        assert not copy.deepcopy(part)._forward_hooks_always_called
        assert torch.equal(part(torch.ones(2)), copy.deepcopy(part)(torch.ones(2)) + 1)
    assert sorted(vars(part)) == before and not part._forward_hooks


def _says(model: Any, given: Any, out: Any) -> None:
    out.put(generated(model, given)[0].tolist())


@pytest.mark.slow
def test_a_spawned_worker_has_a_plain_model() -> None:
    model, given = tiny(), prompt()
    dense = generated(model, given)[0].tolist()
    spawn = multiprocessing.get_context("spawn")
    out = spawn.Queue()
    with attach(model, "random", 3):
        assert generated(model, given)[0].tolist() != dense
        worker = spawn.Process(target=_says, args=(model, given, out))
        worker.start()
        said = out.get(timeout=300)
        worker.join()
    assert said == dense
