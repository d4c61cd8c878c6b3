"""Tensors in the host's memory, for a recipe that chooses there, and its selections back on the GPU.

Each tensor that is moved waits for the GPU, so that only those a recipe needs are.
"""

# pyright: strict
from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Cache, Rest, Selection


def moved(x: Any, device: torch.device) -> Any:
    """An input of a step on another device: a tensor, a cache, a selection, or a pair of angles."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, tuple):
        return tuple(moved(part, device) for part in x)  # type: ignore[reportUnknownVariableType]
    if isinstance(x, Cache):
        return Cache(moved(x.keys, device), moved(x.values, device))
    if isinstance(x, Selection | Rest):
        return replace(x, **{one.name: moved(getattr(x, one.name), device) for one in fields(x)})
    return x
