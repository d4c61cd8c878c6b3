# pyright: strict
"""Vectors made as long as a Hadamard rotation takes them, and rotated: dot products stay what they are."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from topkit.kernels.hadamard import hadamard


def padded(vectors: Tensor) -> Tensor:
    """Vectors [..., D] with zeros behind them, up to a power of two."""
    width = vectors.shape[-1]
    room = (1 << (width - 1).bit_length()) - width
    return pad(vectors, (0, room)) if room else vectors


def rotated(vectors: Tensor, backend: str = "torch") -> Tensor:
    """The orthonormal Walsh-Hadamard transform of padded vectors, in float32."""
    return hadamard(padded(vectors), backend=backend)
