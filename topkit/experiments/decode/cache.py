"""Cache layers of transformers that grow in place and keep the index over them up to date."""

from __future__ import annotations

import copy
import copyreg
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from topkit.errors import InputError
from topkit.experiments.decode.layer_index import CacheOwner, LayerIndex
from topkit.indexers.growing import Growing
from topkit.kernels.cache_append import cache_append


def index_over(layer: Any, owner: CacheOwner) -> LayerIndex:
    """The index of `owner` over a cache layer, which becomes an IndexedLayer if it is none yet.

    Raises: InputError for a cache that is not kept whole: static, quantized, sliding, shared.
    """
    indexed = isinstance(layer, IndexedLayer)
    if indexed and layer.layer_index.owner is owner:
        return layer.layer_index
    kind = type(layer)
    if not issubclass(kind, DynamicLayer) or kind.is_sliding or hasattr(kind, "_quantize"):
        raise InputError(f"attach follows a DynamicCache of whole layers; got a {kind.__name__}")
    if not indexed:
        layer.__class__ = _indexed(kind)
        layer.growing = Growing(), Growing()
    layer.layer_index = LayerIndex(owner)
    owner.add(layer)
    return layer.layer_index


def rooms(layer: Any, owner: CacheOwner, length: int) -> list[Tensor]:
    """The buffers of a layer and of its index, which hold `length` slots and have place for one more.

    None at all where `owner` has no index over the layer, or either holds otherwise.
    """
    if not isinstance(layer, IndexedLayer) or layer.layer_index.owner is not owner:
        return []
    index, valid = layer.layer_index.index, layer.layer_index.valid
    if index is None or not length == valid == index.length == layer.get_seq_length():
        return []
    own, codes = layer.room(), index.room()
    return [] if not own or codes is None else [*own, *codes.values()]


class IndexedLayer(DynamicLayer):
    """A cache layer of its own kind that tells its index what becomes of it."""

    kind: type[DynamicLayer]
    keys: Tensor
    values: Tensor
    layer_index: LayerIndex
    growing: tuple[Growing, Growing]
    # transformers would make a subclass with a layer type by default.
    _layer_type = None

    def restore(self) -> None:
        """Give the layer its own class back."""
        del self.layer_index, self.growing
        self.__class__ = self.kind  # type: ignore[assignment]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        slot = self.layer_index.owner.slot
        if slot is not None:
            return self._put(slot, key_states, value_states)
        # A layer that stores in another way, or keys that gradients flow through, stay its own.
        plain = self.kind.update is DynamicLayer.update and self.get_seq_length() > 0
        if not plain or key_states.requires_grad or value_states.requires_grad:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self.growing[0].append(self.keys, key_states)
        self.values = self.growing[1].append(self.values, value_states)
        return self.keys, self.values

    def room(self) -> list[Tensor]:
        """The buffers of keys and of values, with place for one more slot; none without."""
        if self.kind is not DynamicLayer:
            return []
        pairs = zip(self.growing, (self.keys, self.values), strict=True)
        own = [whole for growing, now in pairs if (whole := growing.whole(now)) is not None]
        return own if len(own) == 2 else []

    def _put(self, slot: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a slot into the buffers, and give them whole; it shows from `reveal` on."""
        self.layer_index.new = keys
        own_keys, own_values = self.room()
        cache_append(own_keys, own_values, keys, values, slot)
        return own_keys, own_values

    def reveal(self, length: int) -> None:
        """Show the slots before `length`, which steps of fixed shapes wrote, here and in the index."""
        self.keys, self.values = (growing.until(length) for growing in self.growing)
        assert self.layer_index.index is not None
        self.layer_index.index.reveal(length)
        self.layer_index.valid = length

    def get_seq_length(self) -> Any:
        # On the device, as a static layer's: using it on the host waits for the device.
        slot = self.layer_index.owner.slot
        return super().get_seq_length() if slot is None else slot[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.layer_index.owner.slot is None:
            return super().get_mask_sizes(query_length)
        return self.room()[0].shape[2], 0

    def offload(self) -> None:
        super().offload()
        self.growing = Growing(), Growing()  # else what was moved away would stay here as well

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin: Any = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin.layer_index.owner.add(twin)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, and copied by shallow copies, as a layer of its own kind."""
        own = {n: x for n, x in vars(self).items() if n not in ("layer_index", "growing")}
        return copyreg._reconstructor, (self.kind, object, None), own  # type: ignore[attr-defined]

    def crop(self, *args: Any, **kwargs: Any) -> None:
        super().crop(*args, **kwargs)
        self.layer_index.crop(self.get_seq_length())

    def reset(self) -> None:
        super().reset()
        self.growing = Growing(), Growing()
        self.layer_index.forget()

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self.layer_index.reorder(beam_idx.to(self.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = self._rows()
        super().batch_repeat_interleave(repeats)
        self.layer_index.reorder(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = self._rows()
        super().batch_select_indices(indices)
        self.layer_index.reorder(rows[indices])

    def _rows(self) -> Tensor:
        return torch.arange(self.keys.shape[0], device=self.keys.device)


@cache
def _indexed(kind: type[DynamicLayer]) -> type[IndexedLayer]:
    return type(kind.__name__, (IndexedLayer, kind), {"kind": kind})
