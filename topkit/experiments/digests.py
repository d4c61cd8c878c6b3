"""Digests that tell one model, and one tokenizer, from another."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """The sha256 of all parameters and buffers, by name, in the dtype they are used in."""

    def one(named: tuple[str, Tensor]) -> str:
        name, x = named
        digest = hashlib.sha256(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    with ThreadPoolExecutor(8) as threads:
        digests = list(threads.map(one, sorted(model.state_dict().items())))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """The sha256 of all that turns text into tokens; of the vocabulary where no more is known."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        text = backend.to_str()
    else:
        text = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda token: token[1]))
    return hashlib.sha256(text.encode()).hexdigest()
