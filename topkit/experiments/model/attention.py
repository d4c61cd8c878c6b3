"""A model's attention, replaced for a while, and what its modules are given beside q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

Inputs = dict[int, dict[str, Any]]


@contextmanager
def attending_through(
    model: PreTrainedModel, name: str, function: Callable[..., Any]
) -> Iterator[None]:
    """As `switched`, and without gradients, in evaluation mode."""
    training = model.training
    try:
        model.eval()
        with switched(model, name, function), torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def switched(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The model attends through `function` in here, and as before afterwards.

    Masks are those of SDPA. Whatever happens inside, the model's own attention comes back.
    """
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own


@contextmanager
def inputs_of(modules: Iterable[nn.Module]) -> Iterator[Inputs]:
    """What attention modules were last given, by layer: `hidden`, `rope` and MLA's `latent`.

    Shapes: hidden [B, t, C]; rope, cos and sin [1 or B, t, r]; latent [B, t, R].
    """
    found: Inputs = {}
    with ExitStack() as stack:
        for module in modules:
            for handle in _hook(module, found.setdefault(module.layer_idx, {})):  # type: ignore[arg-type]
                stack.callback(handle.remove)
        yield found


def taken(given: Inputs, layer: int) -> dict[str, Any]:
    """What a layer was given, which is let go of here: of a long prompt that is gigabytes."""
    found = given.get(layer, {})
    inputs = dict(found)
    found.clear()
    return inputs


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that know their layer, each after those that it is part of."""
    return [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]


def _hook(module: nn.Module, found: dict[str, Any]) -> Iterator[Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(hidden, Tensor):
            found["hidden"] = hidden
        rope = kwargs.get("position_embeddings")
        if isinstance(rope, tuple) and all(isinstance(x, Tensor) and x.ndim == 3 for x in rope):
            found["rope"] = rope

    def latent(_: nn.Module, __: Any, output: Tensor) -> None:
        found["latent"] = output

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    norm = getattr(module, "q_a_layernorm", None)
    if norm is not None:
        yield norm.register_forward_hook(latent)
