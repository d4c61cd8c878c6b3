# pyright: strict
"""A tensor that grows along its slots, in room kept behind them."""

from __future__ import annotations

import torch
from torch import Tensor

# Room behind the slots: a share of their number, the whole rounded up to a multiple.
SHARE, ROUND = 1 / 8, 32


def room_for(stop: int, share: float = SHARE, multiple: int = ROUND) -> int:
    """The slots of a buffer that is made for `stop`."""
    return -(-(stop + int(stop * share)) // multiple) * multiple


class Growing:
    """Appends in place, so that a step costs as much as it adds, whatever the length."""

    def __init__(self, share: float | None = None, multiple: int | None = None) -> None:
        self._share = SHARE if share is None else share
        self._multiple = ROUND if multiple is None else multiple
        self._buffer: Tensor | None = None
        # The last view that `until` gave, known to be the buffer's beginning.
        self._shown: Tensor | None = None

    def append(self, old: Tensor, new: Tensor) -> Tensor:
        """`old` and `new` [B, H, t, ...] behind it, as a view of the buffer."""
        grown = self.extended(old, new, new.shape[2])
        grown[:, :, grown.shape[2] - new.shape[2] :] = new
        return grown

    def extended(self, old: Tensor, like: Tensor, more: int) -> Tensor:
        """`old` and `more` slots behind it that are still to be written, as a view of the buffer.

        What `old` shows stays as it is: only what stood behind it is written over. A tensor that is
        not the beginning of the buffer, or finds no room in it, moves to a new one.
        """
        length, stop = old.shape[2], old.shape[2] + more
        dtype = torch.promote_types(old.dtype, like.dtype) if old.dtype != like.dtype else old.dtype
        buffer = self._buffer
        if buffer is None or stop > buffer.shape[2] or not _begins_with(buffer, old, dtype):
            room = room_for(stop, self._share, self._multiple)
            buffer = old.new_empty(*old.shape[:2], room, *old.shape[3:], dtype=dtype)
            buffer[:, :, :length] = old
            self._buffer, self._shown = buffer, None
        return buffer[:, :, :stop]

    def whole(self, old: Tensor) -> Tensor | None:
        """The buffer that `old` is the beginning of, with room behind it; None where there is none."""
        buffer = self._buffer
        if buffer is None or old.shape[2] >= buffer.shape[2]:
            return None
        begins = old is self._shown or _begins_with(buffer, old, old.dtype)
        return buffer if begins else None

    def until(self, stop: int) -> Tensor:
        """The slots of the buffer before `stop`, as a view of it."""
        assert self._buffer is not None
        self._shown = self._buffer.narrow(2, 0, stop)
        return self._shown


def _begins_with(buffer: Tensor, old: Tensor, dtype: torch.dtype) -> bool:
    """Whether `old` is the beginning of a buffer that may be written to."""
    if buffer.is_inference() and not torch.is_inference_mode_enabled():
        return False
    same = old.data_ptr() == buffer.data_ptr() and old.stride() == buffer.stride()
    return same and old.shape[:2] == buffer.shape[:2] and dtype == buffer.dtype
