"""A tensor that grows along its slots, in room kept behind them."""

from __future__ import annotations

from torch import Tensor

# Room beyond what is asked: a share of it, and a number of slots to a whole of which it is rounded.
SHARE, ROUND = 1 / 8, 32


class Growing:
    """Appends in place, so that a step costs what it adds, and not what is there already."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def append(self, held: Tensor | None, new: Tensor, capacity: int = 0) -> Tensor:
        """`held` and `new` [B, H, t, ...] behind it, as a view of the buffer."""
        grown = self.extended(held, new, new.shape[2], capacity)
        grown[:, :, grown.shape[2] - new.shape[2] :] = new
        return grown

    def extended(self, held: Tensor | None, like: Tensor, more: int, capacity: int = 0) -> Tensor:
        """`held` and `more` slots behind it that are still to be written, as a view of the buffer.

        What `held` shows stays as it is: only what stood behind it is written over. A tensor that is
        not the beginning of the buffer, or finds no room in it, moves to a new one with room for
        `capacity` slots at least.
        """
        length = 0 if held is None else held.shape[2]
        stop = length + more
        if not self._begins_with(held, like) or stop > self._buffer.shape[2]:  # type: ignore[union-attr]
            room = max(capacity, stop + int(stop * SHARE))
            room = -(-room // ROUND) * ROUND
            self._buffer = like.new_empty(*like.shape[:2], room, *like.shape[3:])
            if held is not None:
                self._buffer[:, :, :length] = held
        assert self._buffer is not None
        return self._buffer[:, :, :stop]

    def _begins_with(self, held: Tensor | None, like: Tensor) -> bool:
        buffer = self._buffer
        if buffer is None or held is None:
            return False
        same = held.data_ptr() == buffer.data_ptr() and held.stride() == buffer.stride()
        return same and held.shape[:2] == buffer.shape[:2] and like.dtype == buffer.dtype
