"""The orthonormal Walsh-Hadamard transform of queries, in one launch."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.hadamard import reference

__all__ = ["hadamard"]

# What the Triton kernel takes.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 128, 256)


def hadamard(vectors: Tensor, *, backend: str = "auto") -> Tensor:
    """The orthonormal Walsh-Hadamard transform of the last dim, in float32.

    Shapes: vectors [..., D], D a power of two. The kernel writes the bits that the definition does.
    Raises: InputError for another D.
    """
    checks.tensors(vectors=vectors)
    if resolve(backend, vectors, _unsupported(vectors)) == "torch" or vectors.numel() == 0:
        return reference.hadamard(vectors)
    from topkit.kernels.hadamard import triton_impl

    return triton_impl.hadamard(vectors)


def _unsupported(vectors: Tensor) -> str | None:
    """What the kernel does not take, as a sentence."""
    if vectors.dtype not in DTYPES:
        return f"vectors must be bfloat16, float16 or float32; got {vectors.dtype}"
    if vectors.shape[-1] not in WIDTHS:
        return f"vectors must have 64, 128 or 256 dimensions; got {vectors.shape[-1]}"
    return checks.ungraded(vectors=vectors)
