"""What a CUDA graph of one step of `generate` reads and writes."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.token_step import TokenStep


@dataclass
class CapturedStep:
    """What a graph reads and writes, at addresses that stay, and the graph where there is a GPU.

    `slot` [1] is where the step writes; `start` [B] where rows begin; `room` the buffers of all layers; `held` what it
    reads that was made once for many: files of weights.
    """

    token: TokenStep
    slot: Tensor
    start: Tensor | None
    room: list[Tensor]
    mask: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    held: dict[int, object] = field(default_factory=dict)
    output: Any = None

    @classmethod
    def of(cls, token: TokenStep, room: list[Tensor], length: int) -> CapturedStep:
        """A step like that of `token`, behind `length` slots, with tensors of its own.

        Raises: InputError for layers on several devices.
        """
        device = token.ids.device
        if any(x.device != device for x in room):
            raise InputError("its layers are on several devices")
        own = TokenStep(token.cache, token.ids.clone(), token.positions.clone(), token.constants)
        slot = torch.full((1,), length, device=device)
        start = token.cache.layers[0].layer_index.start  # type: ignore[attr-defined]
        # Made already, as transformers sees it, which then makes none; `attend` has no use for one.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        return cls(own, slot, start, room, mask)

    def serves(self, token: TokenStep, room: list[Tensor]) -> bool:
        """Whether this very graph gives the step that a token asks for."""
        same = len(self.room) == len(room) and all(map(operator.is_, self.room, room))
        return same and self.token.alike(token)

    def fill(self, token: TokenStep, length: int) -> None:
        """Put a token where the graph reads it, behind `length` slots."""
        self.token.ids.copy_(token.ids)
        self.token.positions.copy_(token.positions)
        self.slot.fill_(length)
