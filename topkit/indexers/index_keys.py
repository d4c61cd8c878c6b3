# pyright: strict
"""Index keys and queries of lightning as they are stored: fp32, or in fp8, int4 or fp4, rotated or not."""

from __future__ import annotations

import math

from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import fp4
from topkit.kernels.codes import factors, levels, scales_stored, stored
from topkit.kernels.quantize_append import quantize_append

DTYPES = ("fp32", "fp8", "int4", *fp4.BLOCK)
# Magnitudes that nvfp4 holds whose tensor scale is one: what is larger is cut, what is smaller lost.
NVFP4 = (2.0**-4, fp4.LARGEST_SCALED)
# The magnitude below which a scale of fp8 does not follow a key. Source: DeepSeek-V3.2-Exp, inference/kernel.py.
AMAX = 1e-4


def bytes_of(dtype: str, width: float) -> float:
    """Bytes of one stored key of `width` numbers, with its scales."""
    if dtype in fp4.BLOCK:
        return math.ceil(width / 2) + math.ceil(width / fp4.BLOCK[dtype])
    if dtype == "int4":
        return math.ceil(width / 2) + 4
    return width + 4 if dtype == "fp8" else 4 * width


def encoded(
    vectors: Tensor, dtype: str, backend: str, scale: str = "pow2", hadamard: bool = True
) -> dict[str, Tensor]:
    """Float32 vectors [B, H, t, d] as they are stored: `vectors`, and their `scale` if they have one."""
    if dtype == "fp32":
        return {"vectors": vectors}
    kind, width = stored(_code(dtype), vectors.shape[-1])
    (stored_as, *_), count = scales_stored(_code(dtype), vectors.shape[-1])
    codes = {
        "vectors": vectors.new_empty(*vectors.shape[:-1], width, dtype=kind),
        "scale": vectors.new_empty(*vectors.shape[:-1], count, dtype=stored_as),
    }
    write(vectors, codes, 0, dtype, backend, scale, hadamard)
    return codes


def write(
    vectors: Tensor,
    codes: dict[str, Tensor],
    at: int | Tensor,
    dtype: str,
    backend: str,
    scale: str = "pow2",
    hadamard: bool = True,
) -> None:
    """Store float32 vectors, rotated by `hadamard`, other than as fp32, at the slots from `at` on.

    scale: of fp8, "pow2" for powers of two, or "float".
    """
    fp8 = dtype == "fp8"
    quantize_append(
        vectors.detach(), codes["vectors"], codes["scale"], at,
        dtype=_code(dtype), hadamard=hadamard, pow2=fp8 and scale == "pow2", amax=AMAX if fp8 else 0.0,
        backend=backend,
    )  # fmt: skip


def decoded(vectors: Tensor, scale: Tensor | None, dtype: str, width: int = 0) -> Tensor:
    """Stored vectors in float32, still rotated where they were; `width`: their numbers, 0 for all that there are."""
    if dtype == "int4" and scale is not None:
        fields = 2 * vectors.shape[-1]
        return (levels(vectors, dtype, fields) * factors(scale))[..., : width or fields]
    if dtype in fp4.BLOCK and scale is not None:
        return fp4.dequantize(vectors, scale, dtype, 2 * vectors.shape[-1])
    return vectors.float() if scale is None else vectors.float() * factors(scale)


def require_normed(keys: Tensor) -> None:
    """Require index keys [B, 1, t, d] of magnitudes that blocks of nvfp4 hold without a scale of their own."""
    largest = float(keys.abs().amax()) if keys.numel() else 1.0
    if largest == 0 or NVFP4[0] <= largest <= NVFP4[1] or largest != largest:
        return
    raise InputError(
        f"lightning: nvfp4 holds index keys whose largest magnitude is {NVFP4[0]:g} to {NVFP4[1]:g}; got "
        f"{largest:g}; scale them and the queries, or take dtype='mxfp4'"
    )


def _code(dtype: str) -> str:
    """The code of topkit.kernels.codes."""
    return "fp8_e4m3" if dtype == "fp8" else dtype
