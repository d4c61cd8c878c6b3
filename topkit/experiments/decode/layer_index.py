"""The index over a cache layer, and whose it is."""

from __future__ import annotations

import threading
from typing import Any, Protocol
from weakref import WeakSet

from torch import Tensor

from topkit.indexers.base import Index


class Indexed(Protocol):
    """A cache layer with an index, until it is restored."""

    layer_index: LayerIndex

    def restore(self) -> None: ...


class CacheOwner:
    """What an attachment shares with the cache layers that it indexes, of whatever cache."""

    def __init__(self) -> None:
        self._layers: WeakSet[Indexed] = WeakSet()
        self._thread = threading.local()

    @property
    def slot(self) -> Tensor | None:
        """The slot [1] that a step of fixed shapes is writing, on the device; None at any other step.

        Each thread has a step of its own.
        """
        return getattr(self._thread, "slot", None)

    @slot.setter
    def slot(self, slot: Tensor | None) -> None:
        self._thread.slot = slot

    def add(self, layer: Indexed) -> None:
        """Count a layer, or a copy of one, among those to be restored."""
        self._layers.add(layer)

    def release(self) -> None:
        """Give all layers their own class back."""
        for layer in self._layers:
            if hasattr(layer, "layer_index"):
                layer.restore()


class LayerIndex:
    """The index over one cache layer; the layer still holds its first `valid` slots as they were.

    start [B] is where each row's tokens begin, as last read (None: 0); new [B, Hk, 1, D] are the keys
    of a step of fixed shapes that the index has still to take in.
    """

    def __init__(self, owner: CacheOwner) -> None:
        self.owner = owner
        self.index: Index | None = None
        self.valid = 0
        self.start: Tensor | None = None
        self.new: Tensor | None = None

    def crop(self, length: int) -> None:
        # The index itself is cut when the driver next knows what that takes: padding, keys.
        self.valid = min(self.valid, length)

    def reorder(self, rows: Tensor) -> None:
        if self.index is not None:
            self.index.reorder(rows)

    def forget(self) -> None:
        self.index, self.valid = None, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerIndex:
        twin = LayerIndex(self.owner)
        twin.index = None if self.index is None else self.index.fork()
        twin.valid, twin.start = self.valid, self.start
        return twin
