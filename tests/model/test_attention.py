"""A model attends through a function for a while, is handed whole calls, and is left as it was."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import DSA, bert, tiny, tokens
from topkit.errors import InputError
from topkit.experiments.model.attention import is_switched, switched_attention, switches
from topkit.experiments.model.attention_call import AttentionCall


class Spy:
    """Attends as the model does, and keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def attend(self, call: AttentionCall) -> Tensor:
        self.calls.append(call)
        return call.dense()

    @property
    def layers(self) -> list[int]:
        return [call.layer for call in self.calls]


def state(model: Any) -> tuple[Any, ...]:
    """All of a model that a switch could change."""
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    return model.config._attn_implementation, hooks, modes, sorted(vars(model))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(tokens(2, 20)).logits


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_calls_are_whole_and_dense_is_the_models_own(kind: str, inputs: bool) -> None:
    model, spy = tiny(kind, sliding_window=8, use_sliding_window=False), Spy()
    want = logits(model)
    with switched_attention(model, spy.attend, inputs=inputs):
        torch.testing.assert_close(logits(model), want)
    call = spy.calls[1]
    assert spy.layers == [0, 1]
    assert call.module is model.model.layers[1].self_attn
    assert [x.shape for x in (call.queries, call.keys, call.values)] == [
        (2, 4, 20, 32),
        (2, 2, 20, 32),
        (2, 2, 20, 32),
    ]
    assert call.scaling == call.module.scaling
    assert call.window == (8 if kind == "gemma3_text" else None)
    assert set(call.inputs) == ({"hidden", "rope"} if inputs else set())


def test_inputs_are_what_modules_were_given() -> None:
    model, spy, hidden = tiny("deepseek_v32", **DSA), Spy(), {}
    want = logits(model)
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: hidden.update(
                {module.layer_idx: args[0] if args else kwargs["hidden_states"]}
            ),
            with_kwargs=True,
        )
        for layer in model.model.layers
    ]
    with switched_attention(model, spy.attend, inputs=True):
        torch.testing.assert_close(logits(model), want)
    for hook in hooks:
        hook.remove()
    for call in spy.calls:
        attn: Any = call.module
        assert call.inputs["hidden"] is hidden[call.layer]
        latent = attn.q_a_layernorm(attn.q_a_proj(hidden[call.layer]))
        torch.testing.assert_close(call.inputs["latent"], latent)
        assert [x.shape for x in call.inputs["rope"]] == [(1, 20, 8)] * 2
        assert call.indices is not None and call.indices.shape == (2, 20, 8)
        call.require_plain(indices=True)
        with pytest.raises(InputError, match="keys of its own choice"):
            call.require_plain()


def test_two_models_at_once_and_one_within_another() -> None:
    """Of one config, too; whoever leaves first."""
    one, spies = tiny(), [Spy() for _ in range(3)]
    two = type(one)(one.config).eval()
    before = state(one), state(two)
    first, second = ExitStack(), ExitStack()
    first.enter_context(switched_attention(one, spies[0].attend, evaluation=False))
    second.enter_context(switched_attention(two, spies[1].attend))
    with switched_attention(one, spies[2].attend):
        logits(one)
    assert [len(spy.calls) for spy in spies] == [0, 0, 2]
    logits(one)
    logits(two)
    assert [len(spy.calls) for spy in spies] == [2, 2, 2]
    assert is_switched(one) and is_switched(one.model) and is_switched(two)
    first.close()
    logits(one)
    logits(two)
    assert [len(spy.calls) for spy in spies] == [2, 4, 2]
    assert not is_switched(one) and is_switched(two)
    second.close()
    assert (state(one), state(two)) == before


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("evaluation", [False, True])
def test_all_comes_back_whatever_happens(own: str, evaluation: bool) -> None:
    model = tiny().train()
    model.set_attn_implementation(own)
    model.model.layers[0].eval()
    before = state(model)

    def fail(call: AttentionCall) -> Tensor:
        assert call.module.training is (not evaluation and call.layer == 1)
        assert torch.is_grad_enabled() is not evaluation
        if call.layer == 1:
            raise RuntimeError("midway")
        return call.dense()

    with (
        pytest.raises(RuntimeError, match="midway"),
        switched_attention(model, fail, inputs=True, evaluation=evaluation),
    ):
        model(tokens())
    assert state(model) == before
    assert not is_switched(model)


def test_what_is_noted_of_a_pass_is_let_go_of() -> None:
    """Also of modules that never came to attend."""
    model, spy = tiny(), Spy()
    model.model.layers[0].self_attn.k_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with switched_attention(model, spy.attend, inputs=True):
        with pytest.raises(ZeroDivisionError):
            logits(model)
        (switch,) = [cell for cell in switches() if model in cell.modules]
        assert not switch.notes.by_module


def test_another_thread_has_the_models_own_attention() -> None:
    """A pass that is recorded is one thread's; an attachment is everybody's."""
    model, mine, everybodys = tiny(), Spy(), Spy()
    want, got = logits(model), []
    with (
        switched_attention(model, everybodys.attend, evaluation=False),
        switched_attention(model, mine.attend),
    ):
        thread = threading.Thread(target=lambda: got.append(logits(model)))
        thread.start()
        thread.join()
    torch.testing.assert_close(got[0], want)
    assert (mine.layers, everybodys.layers) == ([], [0, 1])


def test_an_encoders_call_is_no_layers() -> None:
    model, spy = bert().eval(), Spy()
    with switched_attention(model, spy.attend):
        model(tokens())
    with pytest.raises(InputError, match="not a decoder's causal self-attention"):
        _ = spy.layers


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"s_aux": torch.zeros(4)}, "sinks"),
        ({"softcap": 5.0}, "softcapped"),
        ({"position_bias": torch.zeros(1)}, "position bias"),
        ({"block_indices": torch.zeros(1)}, "blocks of keys of its own choice"),
        ({"strange": torch.zeros(1)}, "a tensor 'strange' beside q, k, v"),
        ({"position_ids": torch.zeros(1), "softcap": None, "dropout": 0.0}, None),
    ],
)
def test_what_is_not_softmax_of_q_k_is_named(options: dict[str, Any], reason: str | None) -> None:
    x = torch.zeros(1, 1, 1, 1)
    call = AttentionCall(torch.nn.Identity(), x, x, x, None, 1.0, None, options, {})
    if reason is None:
        call.require_plain()
    else:
        with pytest.raises(InputError, match=reason):
            call.require_plain()
