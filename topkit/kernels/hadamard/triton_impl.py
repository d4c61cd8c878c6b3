"""The orthonormal Walsh-Hadamard transform in Triton: a program a vector."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.quantize_append.triton_impl import rotated


def hadamard(vectors: Tensor) -> Tensor:
    """As topkit.kernels.hadamard.hadamard's, of checked arguments."""
    dim = vectors.shape[-1]
    rows = vectors.reshape(-1, dim)
    out = torch.empty(rows.shape, dtype=torch.float32, device=vectors.device)
    with torch.cuda.device_of(vectors):  # Triton launches on the current device
        _rotate[(len(rows),)](
            rows, rows.stride(0), rows.stride(1), out, dim, num_warps=1,
            launch_pdl=has_pdl(vectors.device),
        )  # fmt: skip
    return out.view(vectors.shape)


@triton.jit
def _rotate(rows, by, step, out, DIM: tl.constexpr):
    wait_then_launch()
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, DIM)[None, :]
    x = tl.load(rows + row * by + d * step).to(tl.float32)
    tl.store(out + row * DIM + d, rotated(x, DIM, 1))
