"""New keys, encoded, into an index with room for them."""

from __future__ import annotations

import torch
from torch import Tensor

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
) -> None:
    """As topkit.kernels.quantize_append.quantize_append, by the definitions of the codes."""
    keys = hadamard_rotate(keys) if hadamard else keys
    if dtype == "sign":
        new, scales = signs(keys), None
    else:
        new, scales = quantize(keys, dtype, "pow2" if pow2 else "float")
        if scale is not None and scale.dtype == torch.int8:
            scales = exponents(scales)
    if isinstance(at, int):
        here = slice(at, at + keys.shape[2])
        codes[:, :, here] = new
        if scale is not None and scales is not None:
            scale[:, :, here] = scales
        return
    slots = (at.reshape(-1, 1) + torch.arange(keys.shape[2], device=keys.device)).expand(
        len(keys), -1
    )
    row, place = ((slots >= 0) & (slots < codes.shape[2])).nonzero().T
    held, new = codes.view(torch.uint8), new.view(torch.uint8)  # torch puts no fp8
    held[row, :, slots[row, place]] = new[row, :, place]
    if scale is not None and scales is not None:
        scale[row, :, slots[row, place]] = scales[row, :, place]
