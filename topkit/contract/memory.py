# pyright: strict
"""What an index holds in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.indexers.base import Indexer

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, Indexer, type)


def _root(x: Any) -> str:
    return type(x).__module__.split(".")[0]


def _is(x: Any, *kinds: type) -> bool:
    """isinstance, after which the type is as open as before."""
    return isinstance(x, kinds)


def _has_attributes(x: Any) -> bool:
    return hasattr(x, "__dict__") and type(x).__module__ != "builtins"


def tensors_in_reach(index: Any) -> list[Tensor]:
    """The tensors within reach of an index."""
    return [x for x in _in_reach(index)[0] if isinstance(x, Tensor)]


def bytes_in_reach(index: Any, cache: set[int]) -> tuple[int, bool]:
    """Bytes of the tensors and arrays within reach of an index, and whether it holds more than those.

    Each storage counts once; storages whose address is in `cache` do not count.
    """
    storages: dict[int, int] = {}
    arrays, opaque = _in_reach(index)
    for x in arrays:
        if isinstance(x, Tensor):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        else:
            storages[x.__array_interface__["data"][0]] = x.nbytes
    return sum(size for address, size in storages.items() if address not in cache), opaque


def _in_reach(index: Any) -> tuple[list[Any], bool]:
    """Tensors and arrays within reach of an index, and whether it holds more than those."""
    arrays: list[Any] = []
    opaque = False
    seen: set[int] = set()
    ahead: list[Any] = [index]
    while ahead:
        x: Any = ahead.pop()
        if id(x) in seen or isinstance(x, _PLAIN):
            continue
        seen.add(id(x))
        if _is(x, Tensor, np.ndarray):
            arrays.append(x)
        elif _is(x, dict):
            ahead.extend(x.values())
        elif _is(x, list, tuple, set):
            ahead.extend(x)
        elif _has_attributes(x):
            opaque = opaque or _root(x) not in {_root(index), __name__.split(".")[0]}
            ahead.extend(x.__dict__.values())
        else:
            opaque = True
    return arrays, opaque
