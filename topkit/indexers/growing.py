"""A tensor that grows along its slots, in room kept behind them."""

from __future__ import annotations

import torch
from torch import Tensor

# Room beyond what is asked: a share of it, and a number of slots to a whole of which it is rounded.
SHARE, ROUND = 1 / 8, 32


class Growing:
    """Appends in place, so that a step costs what it adds, and not what is there already."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        # What `until` gave last, which needs no second look.
        self._shown: Tensor | None = None

    def append(self, held: Tensor, new: Tensor) -> Tensor:
        """`held` and `new` [B, H, t, ...] behind it, as a view of the buffer."""
        grown = self.extended(held, new, new.shape[2])
        grown[:, :, grown.shape[2] - new.shape[2] :] = new
        return grown

    def extended(self, held: Tensor, like: Tensor, more: int) -> Tensor:
        """`held` and `more` slots behind it that are still to be written, as a view of the buffer.

        What `held` shows stays as it is: only what stood behind it is written over. A tensor that is
        not the beginning of the buffer, or finds no room in it, moves to a new one.
        """
        length, stop = held.shape[2], held.shape[2] + more
        dtype = (
            torch.promote_types(held.dtype, like.dtype) if held.dtype != like.dtype else held.dtype
        )
        buffer = self._buffer
        if buffer is None or stop > buffer.shape[2] or not _begins_with(buffer, held, dtype):
            room = -(-(stop + int(stop * SHARE)) // ROUND) * ROUND
            buffer = held.new_empty(*held.shape[:2], room, *held.shape[3:], dtype=dtype)
            buffer[:, :, :length] = held
            self._buffer, self._shown = buffer, None
        return buffer[:, :, :stop]

    def whole(self, held: Tensor) -> Tensor | None:
        """The buffer that `held` is the beginning of, with room behind it; None where there is none."""
        buffer = self._buffer
        if buffer is None or held.shape[2] >= buffer.shape[2]:
            return None
        begins = held is self._shown or _begins_with(buffer, held, held.dtype)
        return buffer if begins else None

    def until(self, stop: int) -> Tensor:
        """The slots of the buffer before `stop`, as a view of it."""
        assert self._buffer is not None
        self._shown = self._buffer.narrow(2, 0, stop)
        return self._shown


def _begins_with(buffer: Tensor, held: Tensor, dtype: torch.dtype) -> bool:
    """Whether `held` is the beginning of a buffer that may be written to."""
    if buffer.is_inference() and not torch.is_inference_mode_enabled():
        return False
    same = held.data_ptr() == buffer.data_ptr() and held.stride() == buffer.stride()
    return same and held.shape[:2] == buffer.shape[:2] and dtype == buffer.dtype
