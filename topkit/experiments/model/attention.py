"""The one switch of a model's attention: for a while its layers attend through another function.

transformers finds a model's attention function by the name in its config (AttentionInterface). Here one
name is registered, and behind it stands whatever each model is switched to at the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from topkit.experiments.model.attention_call import AttentionCall

NAME = "topkit"
# Gives the output [B, t, Hq, Dv] of a call.
Attend = Callable[[AttentionCall], Tensor]


@contextmanager
def switched_attention(
    model: PreTrainedModel, attend: Attend, *, inputs: bool = False, evaluation: bool = True
) -> Iterator[None]:
    """The model attends through `attend` in here, and as before afterwards, whatever happens.

    `inputs`: calls bring their modules' inputs beside q, k and v. `evaluation`: in evaluation
    mode, without gradients, and for the calls of this thread alone; else the model is as it is used.
    Masks are those of SDPA. Of two switches of one model the later counts.
    """
    switch = _Switch(model, attend, threading.get_ident() if evaluation else None)
    with ExitStack() as stack:
        if inputs:
            stack.enter_context(switch.noting())
        if evaluation:
            stack.enter_context(_evaluating(model))
        _switches.append(switch)
        stack.callback(_switches.remove, switch)
        stack.enter_context(_named(model))
        yield


def is_switched(model: nn.Module) -> bool:
    """Whether some part of the model attends through a switch, in any thread."""
    modules = set(model.modules())
    return any(modules & switch.modules for switch in _switches)


class _Switch:
    """What the modules of one model attend through; in one thread, or in all (None)."""

    def __init__(self, model: nn.Module, attend: Attend, thread: int | None) -> None:
        self.modules = frozenset(model.modules())
        self.attend, self.thread = attend, thread
        self.notes = _Notes()

    def serves(self, module: nn.Module) -> bool:
        return module in self.modules and self.thread in (None, threading.get_ident())

    @contextmanager
    def noting(self) -> Iterator[None]:
        """The inputs of the modules that know their layer are noted while they run."""
        with ExitStack() as stack:
            for module in self.modules:
                if isinstance(getattr(module, "layer_idx", None), int):
                    for handle in self._hooks(module):
                        stack.callback(handle.remove)
            yield

    def _hooks(self, module: nn.Module) -> Iterator[Any]:
        notes = self.notes

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs: dict[str, Any] = {}
            hidden = kwargs.get("hidden_states", args[0] if args else None)
            if isinstance(hidden, Tensor):
                inputs["hidden"] = hidden
            rope = kwargs.get("position_embeddings")
            if isinstance(rope, tuple) and all(isinstance(x, Tensor) and x.ndim == 3 for x in rope):
                inputs["rope"] = rope
            notes.by_module[module] = inputs, kwargs.get("past_key_values")

        def latent(_: nn.Module, __: Any, output: Tensor) -> None:
            if module in notes.by_module:
                notes.by_module[module][0]["latent"] = output

        def end(*_: Any) -> None:
            notes.by_module.pop(module, None)

        yield module.register_forward_pre_hook(begin, with_kwargs=True)
        yield module.register_forward_hook(end, always_call=True)
        norm = getattr(module, "q_a_layernorm", None)
        if norm is not None:
            yield norm.register_forward_hook(latent)


class _Notes(threading.local):
    """The inputs and the cache of modules that run in this thread, up to their call of attention."""

    def __init__(self) -> None:
        self.by_module: dict[nn.Module, tuple[dict[str, Any], Any]] = {}


_switches: list[_Switch] = []
# By id: a config, the name of its own attention, and how many switches it is under.
_configs: dict[int, tuple[Any, str | None, int]] = {}
_lock = threading.Lock()


@contextmanager
def _named(model: PreTrainedModel) -> Iterator[None]:
    """The model's configs name NAME; the last to leave a config gives its own name back."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    with _lock:
        for key, config in configs.items():
            _, own, count = _configs.get(key, (config, config._attn_implementation, 0))
            _configs[key] = config, own, count + 1
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        with _lock:
            for key in configs:
                config, own, count = _configs.pop(key)
                if count > 1:
                    _configs[key] = config, own, count - 1
                else:
                    config._attn_implementation = own


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    indices: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. A model that shares its config with a switched one attends densely."""
    switch = next((one for one in reversed(_switches) if one.serves(module)), None)
    inputs, cache = {}, None
    if switch is not None:
        # Let go of here: of a long prompt that is gigabytes.
        inputs, cache = switch.notes.by_module.pop(module, (inputs, cache))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    call = AttentionCall(module, query, key, value, mask, scale, indices, options, inputs, cache)
    return (call.dense() if switch is None else switch.attend(call)), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
