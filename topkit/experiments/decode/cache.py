"""Indexes that follow a transformers cache, which grows in place while they do."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from topkit.errors import InputError
from topkit.indexers.base import Index
from topkit.indexers.growing import Growing
from topkit.kernels.cache_append import cache_append


class Owner(Protocol):
    """Whose layers are followed, and given back when it leaves."""

    def also(self, layer: Any) -> None:
        """Follow a copy of a layer, too."""
        ...

    @property
    def at(self) -> Tensor | None:
        """The slot [1] that a step of fixed shapes is writing, on the device; None at any other step."""
        ...


class Followed:
    """The index over one cache layer; the layer still holds its first `valid` slots as they were.

    start [B] is where each row's tokens begin, as last read (None: 0); new [B, Hk, 1, D] are the keys
    of a step of fixed shapes that the index has still to take in.
    """

    def __init__(self, owner: Owner) -> None:
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Followed:
        twin = Followed(self.owner)
        twin.index = None if self.index is None else self.index.fork()
        twin.valid, twin.start = self.valid, self.start
        return twin


def follow(layer: Any, owner: Owner) -> Followed:
    """What follows a cache layer on behalf of `owner`; a layer not yet followed is from now on.

    Raises: InputError for a cache that is not kept whole: static, quantized, sliding, shared.
    """
    found = vars(layer).get("followed")
    if found is not None and found.owner is owner:
        return found
    kind = type(layer)
    if not issubclass(kind, DynamicLayer) or kind.is_sliding or hasattr(kind, "_quantize"):
        raise InputError(f"attach follows a DynamicCache of whole layers; got a {kind.__name__}")
    if found is None:
        layer.__class__ = _following(kind)
        layer.growing = Growing(), Growing()
    layer.followed = Followed(owner)
    return layer.followed


def room(layer: Any, owner: Owner, length: int) -> list[Tensor]:
    """The buffers of a layer and of its index, which hold `length` slots and have place for one more.

    None at all where a layer is not followed by `owner`, or holds otherwise.
    """
    followed = vars(layer).get("followed")
    if followed is None or followed.owner is not owner or followed.index is None:
        return []
    if not length == followed.valid == followed.index.length == layer.get_seq_length():
        return []
    own, codes = layer.room(), followed.index.room()
    return [*own, *codes.values()] if own and codes else []


def leave(layer: Any) -> None:
    """Give a cache layer its own class back."""
    if "followed" in vars(layer):
        del layer.followed, layer.growing
        layer.__class__ = type(layer).__base__


@cache
def _following(kind: type) -> type:
    class Following(kind):
        """A cache layer that tells its index what becomes of it."""

        followed: Followed
        growing: tuple[Growing, Growing]
        # transformers would take a subclass with a layer type for the one to make by default.
        _layer_type = None

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            at = self.followed.owner.at
            if at is not None:
                return self._put(at, key_states, value_states)
            # A layer that stores in another way, or keys that gradients flow through, stay its own.
            plain = kind.update is DynamicLayer.update and self.get_seq_length() > 0
            if not plain or key_states.requires_grad or value_states.requires_grad:
                return super().update(key_states, value_states, *args, **kwargs)
            self.keys = self.growing[0].append(self.keys, key_states)
            self.values = self.growing[1].append(self.values, value_states)
            return self.keys, self.values

        def room(self) -> list[Tensor]:
            """The buffers of keys and of values, with place for one more slot; none without."""
            if kind is not DynamicLayer:
                return []
            pairs = zip(self.growing, (self.keys, self.values), strict=True)
            own = [whole for growing, held in pairs if (whole := growing.whole(held)) is not None]
            return own if len(own) == 2 else []

        def _put(self, at: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            """Write a slot into the buffers, and give them whole; it shows from `reveal` on."""
            self.followed.new = keys
            own_keys, own_values = self.room()
            cache_append(own_keys, own_values, keys, values, at)
            return own_keys, own_values

        def reveal(self, length: int) -> None:
            """Hold the slots before `length`, and the index too: steps of fixed shapes wrote them."""
            self.keys, self.values = (growing.until(length) for growing in self.growing)
            assert self.followed.index is not None
            self.followed.index.reveal(length)
            self.followed.valid = length

        def get_seq_length(self) -> Any:
            # On the device, as a static layer's: who would count on it on the host has to wait for it.
            at = self.followed.owner.at
            return super().get_seq_length() if at is None else at[0]

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            at = self.followed.owner.at
            if at is None:
                return super().get_mask_sizes(query_length)
            return self.room()[0].shape[2], 0

        def offload(self) -> None:
            super().offload()
            self.growing = Growing(), Growing()  # else what was moved away would stay here as well

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            twin = memo[id(self)] = object.__new__(type(self))
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
            twin.followed.owner.also(twin)
            return twin

        def crop(self, *args: Any, **kwargs: Any) -> None:
            super().crop(*args, **kwargs)
            self.followed.crop(self.get_seq_length())

        def reset(self) -> None:
            super().reset()
            self.growing = Growing(), Growing()
            self.followed.forget()

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self.followed.reorder(beam_idx.to(self.device))

        def batch_repeat_interleave(self, repeats: int) -> None:
            rows = self._rows()
            super().batch_repeat_interleave(repeats)
            self.followed.reorder(rows.repeat_interleave(repeats))

        def batch_select_indices(self, indices: Tensor) -> None:
            rows = self._rows()
            super().batch_select_indices(indices)
            self.followed.reorder(rows[indices])

        def _rows(self) -> Tensor:
            return torch.arange(self.keys.shape[0], device=self.keys.device)

    Following.__name__ = kind.__name__
    return Following
