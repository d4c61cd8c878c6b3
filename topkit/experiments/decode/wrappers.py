"""The transformers model within a wrapper: taken where its calls go through the wrapper, else named."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from topkit.errors import InputError


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model to attach to: itself, or that of a PEFT model.

    Raises: InputError for what is none, and says which part of a wrapper to pass.
    """
    kind = type(model).__name__
    if isinstance(model, PreTrainedModel):
        if getattr(model, "_compiled_call_impl", None) is not None:
            raise InputError(
                f"this {kind} was compiled by model.compile(), and attach would not act on what is "
                "compiled already; attach to a model that is not"
            )
        return model
    if any(cls.__module__.partition(".")[0] == "peft" for cls in type(model).__mro__):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise InputError(
                f"{kind} puts virtual tokens before each prompt, which attach does not follow; "
                "adapters of weights, such as LoRA, it does"
            )
        return unwrapped(model.get_base_model())
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    inside = next((name for name, part in parts if isinstance(part, PreTrainedModel)), None)
    if inside is None:
        raise InputError(f"attach takes a loaded transformers model; got {kind}")
    raise InputError(
        f"attach takes a loaded transformers model; got {kind}, which wraps one: pass (and then call) "
        f"its .{inside}"
    )
