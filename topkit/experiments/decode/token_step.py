"""A decoding step of one token a row, as `generate` asks a model's forward for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

# Arguments of a forward pass that a graph may hold for good.
CONSTANT = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class TokenStep:
    """One token a row: ids [B, 1], positions [..., 1]; all other arguments of forward are constant."""

    cache: DynamicCache
    ids: Tensor
    positions: Tensor
    constants: dict[str, Any]

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> TokenStep | None:
        """The step that these arguments of a model's forward ask for, None where they are another's."""
        constants = dict(kwargs)
        names = ("input_ids", "position_ids", "attention_mask", "past_key_values")
        ids, positions, mask, cache = (constants.pop(name, None) for name in names)
        if type(cache) is not DynamicCache or cache.offloading:
            return None
        if not isinstance(ids, Tensor) or ids.shape[1:] != (1,) or ids.dtype != torch.int64:
            return None
        # A model without positions counts them on the host.
        if not isinstance(positions, Tensor) or positions.shape[-1:] != (1,):
            return None
        # Of the mask only its size is looked at: where rows begin was read at the step before.
        slots = cache.get_seq_length() + 1
        if mask is not None and getattr(mask, "shape", None) != (len(ids), slots):
            return None
        if constants.get("output_attentions") or constants.get("output_hidden_states"):
            return None
        if any(not isinstance(x, CONSTANT) for x in constants.values()):
            return None
        return cls(cache, ids, positions, constants)

    def alike(self, other: TokenStep) -> bool:
        """Whether the two differ in their tokens and positions alone."""
        shapes = [(step.ids.shape, step.positions.shape) for step in (self, other)]
        same = self.cache is other.cache and self.constants == other.constants
        return same and shapes[0] == shapes[1]
