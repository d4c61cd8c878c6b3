"""A model that is changed while it is attached: right, or one clear line; wrappers, too."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from generation import generated
from tiny import prompt, tiny, tokens
from topkit.errors import InputError
from topkit.experiments.decode.attach import Attachment, attach

pytestmark = pytest.mark.filterwarnings("ignore:.*selected nothing")


@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_another_attention_is_refused(own: str) -> None:
    model = tiny()
    with attach(model, "sign", 4):
        model.set_attn_implementation(own)
        with pytest.raises(InputError, match=f"did not attend.*now '{own}'; detach") as refusal:
            generated(model, prompt())
        assert "\n" not in str(refusal.value)
        with pytest.raises(InputError, match="did not attend"):
            model.model(tokens())
    generated(model, prompt())


def test_replicas_of_a_model_are_refused() -> None:
    """What nn.DataParallel makes of a model's parts shares their hooks and nothing else."""
    model = tiny()
    with attach(model, "sign", 4):
        replica = model._replicate_for_data_parallel()
        layer = model.model.layers[0]
        layer.self_attn = layer.self_attn._replicate_for_data_parallel()
        with pytest.raises(InputError, match=r"layer 0 .*it is a replica"):
            replica(tokens())


def test_a_pass_that_fails_midway_is_raised_as_it_is() -> None:
    model = tiny()
    with attach(model, "sign", 4):
        note = model.model.layers[1].self_attn.k_proj.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generated(model, prompt())
        note.remove()
        generated(model, prompt())


def test_generate_that_is_deleted_is_named() -> None:
    model = tiny()
    ours = attach(model, "sign", 4)
    del model.generate
    with pytest.raises(InputError, match="generate of the attached model was deleted"):
        generated(model, prompt())
    ours.detach()
    assert "generate" not in vars(model)


def test_generate_that_is_wrapped_goes_on_and_stays() -> None:
    model, given = tiny(), prompt()
    dense = generated(model, given)[0]
    ours = attach(model, "sign", 4)
    want, inner = generated(model, given)[0], model.generate
    model.generate = lambda *args, **how: inner(*args, **how)
    assert torch.equal(generated(model, given)[0], want)
    ours.detach()
    assert torch.equal(generated(model, given)[0], dense)
    assert "generate" in vars(model)


def test_a_lost_handle_is_given_again() -> None:
    model = tiny()
    with attach(model, "sign", 4):
        want = generated(model, prompt())[0]
    attach(model, "sign", 4)
    gc.collect()
    assert torch.equal(generated(model, prompt())[0], want)
    with pytest.raises(InputError, match=r"attached already.*Attachment\.of\(model\)\.detach\(\)"):
        attach(model, "sign", 4)
    Attachment.of(model).detach()
    with pytest.raises(InputError, match="Qwen3ForCausalLM is not attached"):
        Attachment.of(model)


@pytest.mark.parametrize("decoder", [False, True])
def test_a_handle_lost_is_not_a_model_detached(decoder: bool) -> None:
    """Nor is a model kept for ever that nobody can reach."""
    whole = tiny()
    model = whole.model if decoder else whole
    del whole
    attach(model, "random", 3, sparse_from_slot=3)
    gc.collect()
    sparse = model(tokens())[0]
    Attachment.of(model).detach()
    assert not torch.equal(model(tokens())[0], sparse)
    attach(model, "random", 3)
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None


def test_a_model_may_move() -> None:
    model = tiny()
    with attach(model, "sign", 4):
        want = generated(model, prompt())[0]
        model.to(torch.float64)
        assert model.generate(**prompt(), max_new_tokens=4).shape == (1, 28)
        model.to(torch.float32)
        assert torch.equal(generated(model, prompt())[0], want)


class Around(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Any) -> Any:
        return self.net(ids)


WRAPPED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a module": (Around, "got Around, which wraps one: pass .*its .net"),
    "two": (lambda model: Around(Around(model)), "its .net.net"),
    "DataParallel": (nn.DataParallel, "its .module"),
    "compiled": (lambda model: torch.compile(model, backend="eager"), "its ._orig_mod"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapper_is_told_what_to_pass(case: str) -> None:
    wrap, line = WRAPPED[case]
    model = tiny()
    with pytest.raises(InputError, match=line):
        attach(wrap(model), "sign", 4)
    # DataParallel reads a model that lies on a GPU where there is one.
    if case != "compiled" and not (case == "DataParallel" and torch.cuda.is_available()):
        ids = tokens()
        with attach(model, "random", 3, sparse_from_slot=9):
            torch.testing.assert_close(wrap(model)(ids).logits, model(ids).logits)


def test_a_model_compiled_in_place_is_refused() -> None:
    model = tiny()
    model.compile(backend="eager")
    with pytest.raises(InputError, match=r"compiled by model.compile\(\)"):
        attach(model, "sign", 4)


def test_lora_is_unwrapped() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model, given = peft.get_peft_model(tiny(), config).eval(), prompt()
    dense = generated(model, given)[0]
    with attach(model, "random", 3):
        sparse = generated(model, given)[0]
        assert torch.equal(generated(copy.deepcopy(model), given)[0], dense)
        with model.disable_adapter():
            assert not torch.equal(generated(model, given)[0], sparse)
    with attach(model.get_base_model(), "random", 3):
        assert torch.equal(generated(model, given)[0], sparse)
    assert torch.equal(generated(model, given)[0], dense) and not torch.equal(sparse, dense)


def test_virtual_tokens_are_refused() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(InputError, match="virtual tokens"):
        attach(peft.get_peft_model(tiny(), config), "sign", 4)


def test_weights_that_are_offloaded_decode_the_same() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, given = tiny(), prompt()
    with attach(model, "random", 3):
        want = generated(model, given)[0]
    dense = generated(model, given)[0]
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with attach(model, "random", 3):
        assert torch.equal(generated(model, given)[0], want)
        assert torch.equal(generated(copy.deepcopy(model), given)[0], dense)
    assert torch.equal(generated(model, given)[0], dense)


def test_k_may_come_from_numpy_and_torch() -> None:
    model, given = tiny(), prompt()
    with attach(model, "sign", 3):
        want = generated(model, given)[0]
    for k in (np.int64(3), np.array(3), np.array([3]), torch.tensor(3), np.float32(3), "3", [3]):
        with attach(model, "sign", k):  # type: ignore[arg-type]
            assert torch.equal(generated(model, given)[0], want), k
    for k in (np.array([3, 4]), torch.tensor([3, 4]), range(3, 5), np.bool_(True), torch.empty(0)):
        with pytest.raises(InputError, match="k must be a number of keys"):
            attach(model, "sign", k)  # type: ignore[arg-type]
