"""New keys, encoded, into an index with room for them."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.kernels import fp4
from topkit.kernels.blocks import blocks
from topkit.kernels.codes import exponents, hadamard_rotate, quantize, signs


def quantize_append(
    keys: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    at: int | Tensor,
    *,
    dtype: str,
    hadamard: bool,
    pow2: bool,
    amax: float = 0.0,
) -> None:
    """As topkit.kernels.quantize_append.quantize_append, by the definitions of the codes."""
    for part in blocks(keys.shape[2], keys[:, :, :1].numel(), keys.device):
        vectors = hadamard_rotate(keys[:, :, part]) if hadamard else keys[:, :, part]
        if dtype == "sign":
            new, scales = signs(vectors), None
        elif dtype in fp4.BLOCK:
            new, scales = fp4.quantize(vectors, dtype)
        else:
            new, scales = quantize(vectors, dtype, "pow2" if pow2 else "float", amax)
            if scale is not None and scale.dtype == torch.int8:
                scales = exponents(scales)
        _write(codes, new, at + part.start)
        if scale is not None and scales is not None:
            _write(scale, scales, at + part.start)


def _write(buffer: Tensor, new: Tensor, at: int | Tensor) -> None:
    """Put new [B, Hk, t, W] into those of the slots at, at + 1, ... that the buffer has."""
    if isinstance(at, int):
        buffer[:, :, at : at + new.shape[2]] = new
        return
    slots = at.reshape(-1, 1) + torch.arange(new.shape[2], device=new.device)
    slots = slots.expand(len(new), -1)
    row, place = ((slots >= 0) & (slots < buffer.shape[2])).nonzero().T
    if buffer.dtype == torch.float8_e4m3fn:  # torch puts none
        buffer, new = buffer.view(torch.uint8), new.view(torch.uint8)
    buffer[row, :, slots[row, place]] = new[row, :, place]
