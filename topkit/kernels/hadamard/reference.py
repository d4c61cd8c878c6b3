"""The orthonormal Walsh-Hadamard transform, in torch."""

from __future__ import annotations

from torch import Tensor

from topkit.kernels.codes import hadamard_rotate


def hadamard(vectors: Tensor) -> Tensor:
    """As topkit.kernels.hadamard.hadamard."""
    return hadamard_rotate(vectors)
