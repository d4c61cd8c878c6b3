"""What kernels refuse, before anything is launched: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from topkit.errors import InputError

PLACES = (torch.int64, torch.int32)
# Blocks of a grid, but in its first dimension.
MOST_BLOCKS = 65535


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Require one of the known words."""
    known = list(known)
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}")


def tensors(**named: object) -> None:
    """Require tensors."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} must be a tensor; got {type(value).__name__}")


def ordinary(name: str, tensor: Tensor) -> None:
    """Require a tensor whose numbers are there, each at its place."""
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    kind = "without numbers (meta)" if tensor.is_meta else kind
    if kind != "strided":
        raise InputError(f"{name} must be an ordinary tensor; got one that is {kind}")


def typed(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Require one of some dtypes."""
    if tensor.dtype not in dtypes:
        words = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"{name} must be {words}; got {tensor.dtype}")


def dims(name: str, tensor: Tensor, count: int) -> None:
    """Require so many dimensions."""
    if tensor.dim() != count:
        raise InputError(f"{name} must have {count} dimensions; got shape {tuple(tensor.shape)}")


def shaped(name: str, tensor: Tensor, expected: Sequence[int], one_row: bool = False) -> None:
    """Require a shape; with `one_row` a single row may stand for all."""
    shape = tuple(tensor.shape)
    if shape != tuple(expected) and not (one_row and shape == (1, *expected[1:])):
        raise InputError(f"{name} must be {tuple(expected)}; got {shape}")


def beside(device: torch.device, **tensors: Tensor | None) -> None:
    """Require one device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise InputError(f"{name} must be on {device}; got {tensor.device}")


def unexpanded(**tensors: Tensor | None) -> None:
    """Require a place of its own for each element: of two writes to one, either may last."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        pairs = zip(tensor.stride(), tensor.shape, strict=True)
        if 0 in [by for by, size in pairs if size > 1]:
            raise InputError(f"{name} must not be expanded; got strides {tensor.stride()}")


def whole(name: str, value: object) -> int:
    """Require an integer, Python's or numpy's."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number; got {value!r}")
    return int(value)


def at_least_one(name: str, value: object) -> int:
    """Require a count."""
    count = whole(name, value)
    if count < 1:
        raise InputError(f"{name} must be at least 1; got {count}")
    return count


def ungraded(**tensors: Tensor | None) -> str | None:
    """That a tensor wants gradients, which kernels do not have, as a sentence."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            return f"{name} must not require gradients; the kernel has none"
    return None


def unpacked(**tensors: Tensor) -> str | None:
    """That a tensor's last dimension is strewn over memory, as a sentence."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
            stride = tensor.stride(-1)
            return f"{name} must be contiguous in the last dimension; got stride {stride}"
    return None
