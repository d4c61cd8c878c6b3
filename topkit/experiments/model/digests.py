"""Digests that tell one model, and one tokenizer, from another."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

# What a model's weights may be loaded as.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a config, what no number depends on, or is said elsewhere.
SILENT = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "_model_name_or_path"}


def weights_digest(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """The sha256 of all parameters and buffers, by name, in the dtype they are used in, or in `dtype`."""

    def one(named: tuple[str, Tensor]) -> str:
        name, x = named
        x = x.to(dtype) if dtype and x.is_floating_point() else x
        digest = hashlib.sha256(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(one, sorted(model.state_dict().items())))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def weights_digests(model: nn.Module) -> list[str]:
    """The digests that a model's weights have in each dtype that they may be loaded as."""
    return sorted({weights_digest(model), *(weights_digest(model, dtype) for dtype in DTYPES)})


def config_digest(model: Any) -> str:
    """The sha256 of a model's config, and of the tokens that end its turn.

    The same weights are another model at another RoPE, window or norm.
    """
    own = getattr(model, "generation_config", None)
    said = [_said(model.config.to_diff_dict()), getattr(own, "eos_token_id", None)]
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _said(value: Any) -> Any:
    """A config's entries without the silent ones, also within one another; names as text."""
    if isinstance(value, dict):
        return {str(key): _said(x) for key, x in value.items() if key not in SILENT}
    return [_said(x) for x in value] if isinstance(value, list | tuple) else value


def tokenizer_digest(tokenizer: Any) -> str:
    """The sha256 of all that turns text into tokens, a chat's template and what ends a text with it.

    Of the vocabulary where no more is known.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        text = backend.to_str()
    else:
        text = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda token: token[1]))
    if template := getattr(tokenizer, "chat_template", None):
        text += json.dumps(template, sort_keys=True)
    if (end := getattr(tokenizer, "eos_token_id", None)) is not None:
        text += f" {end}"
    return hashlib.sha256(text.encode()).hexdigest()
