"""Where each row's tokens begin, read from the masks and positions that a model gives its attention."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from topkit.errors import InputError


class Padding(threading.local):
    """Reads the mask of a forward pass, which is one thread's, once for all layers."""

    def __init__(self) -> None:
        self._read: tuple[Tensor | None, Tensor | None, int, int] = (None, None, 0, 0)
        self._start: Tensor | None = None

    def start(
        self, mask: Tensor | None, positions: Tensor | None, count: int, length: int
    ) -> Tensor | None:
        """The first real slot of each row [B], None where that is 0 in all.

        Shapes: mask [B or 1, 1 or H, count, length] (None: causal), bool or additive; positions
        [B or 1, count].
        Raises: InputError unless each query sees its row from the first real slot up to itself.
        """
        if mask is None and count == 1:
            return None
        last_mask, last_positions, *shape = self._read
        if last_mask is mask and last_positions is positions and shape == [count, length]:
            return self._start
        self._start = None if mask is None else _start(mask, count, length)
        _require_consecutive(positions, self._start, count, length)
        self._read = (mask, positions, count, length)
        return self._start


def _start(mask: Tensor, count: int, length: int) -> Tensor | None:
    visible = mask if mask.dtype == torch.bool else mask == 0
    if visible.ndim != 4 or visible.shape[-2:] != (count, length):
        raise InputError(
            f"attach reads masks over all slots [B, 1, {count}, {length}]; got {tuple(mask.shape)}"
        )
    start = visible[:, 0, -1].long().argmax(-1)
    slots = torch.arange(length, device=mask.device)
    stops = slots[length - count :, None] + 1
    first = start[:, None, None, None]
    if not (visible == ((slots < stops) & (slots >= first))).all():
        raise InputError(
            "attach reads causal masks with padding on the left; this one is packed, padded "
            "elsewhere or custom"
        )
    return start if bool(start.any()) else None


def _require_consecutive(
    positions: Tensor | None, start: Tensor | None, count: int, length: int
) -> None:
    if positions is None or positions.ndim != 2 or positions.shape[-1] != count or count == 1:
        return
    slots = torch.arange(length - count, length - 1, device=positions.device)
    real = slots >= (0 if start is None else start[:, None].to(positions.device))
    if ((positions.diff(dim=-1) != 1) & real).any():
        raise InputError(
            "attach takes one sequence a row; these position_ids do not go up by one (packed rows?)"
        )
