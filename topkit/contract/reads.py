# pyright: strict, reportUnknownMemberType=false
"""The bytes that a selection really reads of its index and of the cache, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GATHERS = {"gather", "index_select", "index", "embedding", "take", "_unsafe_index"}


class Reads(TorchDispatchMode):
    """Counts what operations read of some tensors: `with Reads(tensors) as reads: ...; reads.total`.

    A gather reads the elements that it returns, each time. Elements that other operations read count once,
    however many operations read them, as one kernel would. A view reads nothing.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.gathered = 0
        self.gone_over: dict[int, Tensor] = {}
        # Held, so that no other tensor comes to lie where one that is given up did.
        self.tensors = list(tensors)
        for x in self.tensors:
            storage = x.untyped_storage()
            bytes_of = torch.zeros(storage.nbytes(), dtype=torch.bool, device=x.device)
            self.gone_over[storage.data_ptr()] = bytes_of

    @property
    def total(self) -> int:
        """Bytes that were read."""
        return self.gathered + sum(int(x.sum()) for x in self.gone_over.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = cast(Callable[..., Any], func)(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = str(func.__name__).partition(".")[0]
        if name == "embedding" or (name in _GATHERS and tensors):
            self._gather(tensors[0], out)
            tensors = tensors[1:]
        elif getattr(func, "is_view", False) or name == "detach":
            return out
        for x in tensors:
            self._go_over(x)
        return out

    def _gather(self, source: Tensor, out: Tensor) -> None:
        if self._of(source) is not None:
            self.gathered += out.numel() * out.element_size()

    def _go_over(self, x: Tensor) -> None:
        bytes_of = self._of(x)
        if bytes_of is None or x.numel() == 0:
            return
        size = x.element_size()
        strides = [stride * size for stride in x.stride()]
        place = bytes_of.as_strided([*x.shape, size], [*strides, 1], x.storage_offset() * size)
        place.fill_(True)

    def _of(self, x: Tensor) -> Tensor | None:
        return self.gone_over.get(x.untyped_storage().data_ptr()) if x.numel() else None
