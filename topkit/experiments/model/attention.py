"""The one switch of a model's attention: for a while its layers attend through another function.

transformers finds a model's attention function by the name in its config (AttentionInterface). Here one
name is registered, and behind it stands whatever each model is switched to at the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from topkit.errors import InputError
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.copies import copied_plainly, hook

NAME = "topkit"
# Gives the output [B, t, Hq, Dv] of a call.
Attend = Callable[[AttentionCall], Tensor]


@contextmanager
def switched_attention(
    model: PreTrainedModel,
    attend: Attend,
    *,
    inputs: bool = False,
    evaluation: bool = True,
    bound: Collection[nn.Module] = (),
) -> Iterator[None]:
    """The model attends through `attend` in here, and as before afterwards, whatever happens.

    `inputs`: calls bring their modules' inputs beside q, k and v. `evaluation`: in evaluation
    mode, without gradients, and for the calls of this thread alone; else the model is as it is used.
    `bound` modules raise an InputError where they attend without a switch: their model was changed.
    Masks are those of SDPA. Of two switches of one model the later counts. Copies are plain models.
    """
    switch = _Switch(model, attend, threading.get_ident() if evaluation else None)
    with ExitStack() as stack:
        for module in bound:
            stack.enter_context(_binding(module))
        if inputs:
            stack.enter_context(switch.noting())
        if evaluation:
            stack.enter_context(_evaluating(model))
        stack.enter_context(_listed(switch))
        stack.enter_context(_named(model))
        yield


def is_switched(model: nn.Module) -> bool:
    """Whether some part of the model attends through a switch, in any thread."""
    modules = set(model.modules())
    return any(modules & switch.modules for switch in switches())


def switches() -> list[_Switch]:
    """The switches of all models and threads, the oldest first."""
    return [switch for one in _switches if (switch := one()) is not None]


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
                    for noted in self._hooks(module):
                        stack.enter_context(noted)
            yield

    def _hooks(self, module: nn.Module) -> Iterator[AbstractContextManager[None]]:
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

        yield hook(module, "forward_pre_hook", begin, with_kwargs=True)
        yield hook(module, "forward_hook", end, always_call=True)
        norm = getattr(module, "q_a_layernorm", None)
        if norm is not None:
            yield hook(norm, "forward_hook", latent)


class _Notes(threading.local):
    """The inputs and the cache of modules that run in this thread, up to their call of attention."""

    def __init__(self) -> None:
        self.by_module: dict[nn.Module, tuple[dict[str, Any], Any]] = {}


class _Reached(threading.local):
    """Whether the bound modules that run in this thread have come to attend through a switch."""

    def __init__(self) -> None:
        self.by_module: dict[nn.Module, bool] = {}


_reached = _Reached()


@contextmanager
def _binding(module: nn.Module) -> Iterator[None]:
    def begin(running: nn.Module, *_: Any) -> None:
        _reached.by_module[running] = False

    def check(running: nn.Module, *_: Any) -> None:
        if not _reached.by_module.get(running, False):
            config = getattr(running, "config", None)
            now = getattr(config, "_attn_implementation", None)
            why = "it is a replica" if now == NAME else f"its attention is now {now!r}"
            raise InputError(
                f"layer {getattr(running, 'layer_idx', '?')} of the attached model did not attend "
                f"through the indexer: {why}; detach, change the model, and attach again"
            )

    def end(running: nn.Module, *_: Any) -> None:
        _reached.by_module.pop(running, None)

    with (
        hook(module, "forward_pre_hook", begin),
        hook(module, "forward_hook", check),
        hook(module, "forward_hook", end, always_call=True),
    ):
        yield


# Weakly: a switch that nobody can undo any more goes with its model. Replaced whole, never changed,
# so that threads may read it while others switch.
_switches: tuple[ref[_Switch], ...] = ()
# By id: a config, the name of its own attention, and how many switches it is under.
_configs: dict[int, tuple[Any, str | None, int]] = {}
_lock = threading.Lock()


@contextmanager
def _listed(switch: _Switch) -> Iterator[None]:
    global _switches
    with _lock:
        _switches = (*_switches, ref(switch))
    try:
        yield
    finally:
        with _lock:
            _switches = tuple(one for one in _switches if one() not in (switch, None))


@contextmanager
def _named(model: PreTrainedModel) -> Iterator[None]:
    """The model's configs name NAME; the last to leave a config gives its own name back."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    with _lock:
        for key, config in configs.items():
            copied_plainly(type(config), _plain_config)
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


def _plain_config(config: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a config under its own attention's name."""
    _, own, _ = _configs.get(id(config), (config, None, 0))
    named = state.get("_attn_implementation_internal") == NAME
    return {**state, "_attn_implementation_internal": own} if named else state


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
    switch = next((one for one in reversed(switches()) if one.serves(module)), None)
    inputs, cache = {}, None
    if switch is not None:
        if module in _reached.by_module:
            _reached.by_module[module] = True
        # Let go of here: of a long prompt that is gigabytes.
        inputs, cache = switch.notes.by_module.pop(module, (inputs, cache))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    call = AttentionCall(module, query, key, value, mask, scale, indices, options, inputs, cache)
    return (call.dense() if switch is None else switch.attend(call)), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
