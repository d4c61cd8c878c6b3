# pyright: strict
"""What a kernel hands over, as tensors: torch's, numpy's, or lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks

Array = Tensor | np.ndarray[Any, Any] | Sequence[Any]


def tensor(x: Array | int, name: str) -> Tensor:
    """A tensor of real numbers.

    Raises: InputError for text, objects, ragged lists and complex numbers.
    """
    if isinstance(x, Tensor):
        checks.ordinary(name, x)
        out = x.detach()
    elif isinstance(x, (np.ndarray, np.number, list, tuple, int)):
        try:
            # A copy, because torch wants an array that is writable and has no negative strides.
            out: Tensor = torch.from_numpy(np.array(x))  # pyright: ignore[reportUnknownMemberType]
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} must be an array of numbers: {error}") from error
    else:
        raise InputError(f"{name} must be a torch tensor or numpy array; got {type(x).__name__}")
    if out.is_complex():
        raise InputError(f"{name} must be real numbers; got {out.dtype}")
    return out


def numbers(x: Array, name: str) -> Tensor:
    """A tensor of scores, queries or keys.

    Raises: InputError for truth values, which are a mask, beside what `tensor` refuses.
    """
    out = tensor(x, name)
    if out.dtype == torch.bool:
        raise InputError(f"{name} must be numbers; got a mask of {out.dtype}")
    return out


def indices_of(x: Array) -> Tensor:
    """A tensor of slots [..., w]."""
    out = tensor(x, "indices")
    if out.is_floating_point() or out.dtype == torch.bool or out.dim() == 0:
        raise InputError(f"indices must be integers [..., k]; got {out.dtype} {list(out.shape)}")
    return out


def places(x: Array | int, name: str) -> Tensor:
    """Whole numbers of slots, int64; numbers of a floating-point type may be whole too."""
    out = tensor(x, name)
    whole = out.dtype != torch.bool and (
        not out.is_floating_point() or bool((out.double() == out.double().floor()).all())
    )
    if not whole or not bool(out.double().isfinite().all()):
        raise InputError(f"{name} must be whole numbers of slots; got {_few(out)}")
    return out.long()


def _few(x: Tensor) -> str:
    """The first numbers of a tensor."""
    shown = [f"{float(one):g}" for one in x.flatten()[:8]]
    return f"{', '.join(shown)}{', ...' if x.numel() > 8 else ''}"


def within(x: Tensor, name: str, least: int, most: int, why: str) -> None:
    """Require places from `least` to `most`."""
    if bool(((x < least) | (x > most)).any()):
        raise InputError(f"{name} must be {least} to {most}, {why}; got {_few(x)}")
