"""New keys, encoded, into an index with room for them."""

# pyright: strict

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.codes import DTYPES, scales_stored, stored
from topkit.kernels.quantize_append import reference

__all__ = ["quantize_append"]

# What the Triton kernel takes.
KEYS = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 128)


def quantize_append(
    keys: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    at: int | Tensor,
    *,
    dtype: str,
    hadamard: bool = False,
    pow2: bool = False,
    amax: float = 0.0,
    backend: str = "auto",
) -> None:
    """Encodes new keys into slots at, at + 1, ... of codes and scale, in place and in one launch.

    Shapes: keys [B, Hk, t, D]; codes [B, Hk, C, W] as topkit.kernels.codes encodes them, dtype one of
    sign, int2, int4, int8, fp8_e4m3, mxfp4, nvfp4; scale [B, Hk, C, 1], float32 or exponents in int8,
    None for sign, of blocks [B, Hk, C, ceil(D / block)] for fp4 (topkit.kernels.fp4), rounded up to powers of
    two where `pow2` asks for it, and where it holds exponents; amax, the magnitude below which the scale does not
    follow a key (1e-4 in DeepSeek's code; not of fp4 and sign);
    at a number, or a tensor [1] or [B], which on a GPU is not looked at: slots beyond C are left out.
    The kernel writes the same bits as the definition, of keys that are finite, also after rotation.
    Raises: InputError where shapes, dtypes or devices do not belong together, or there is no room.
    """
    checks.tensors(keys=keys, codes=codes)
    _check(keys, codes, scale, dtype)
    at = at if isinstance(at, Tensor) else checks.whole("at", at)
    _check_room(at, keys, codes)
    how: dict[str, Any] = {"dtype": dtype, "hadamard": hadamard, "amax": amax}
    how["pow2"] = pow2 or (scale is not None and scale.dtype == torch.int8)
    if resolve(backend, keys, _unsupported(keys, codes, scale)) == "torch":
        reference.quantize_append(keys, codes, scale, at, **how)
        return
    from topkit.kernels.quantize_append import triton_impl

    triton_impl.quantize_append(keys, codes, scale, at, **how)


def _check(keys: Tensor, codes: Tensor, scale: Tensor | None, dtype: str) -> None:
    checks.one_of("dtype", dtype, DTYPES)
    checks.dims("keys", keys, 4)
    checks.dims("codes", codes, 4)
    checks.beside(keys.device, codes=codes, scale=scale)
    if not keys.is_floating_point():
        raise InputError(f"keys must be floating-point; got {keys.dtype}")
    kind, width = stored(dtype, keys.shape[3])
    checks.typed("codes", codes, (kind,))
    checks.shaped("codes", codes, (*keys.shape[:2], codes.shape[2], width))
    if (scale is None) != (dtype == "sign"):
        raise InputError(f"scale must be {'None' if scale is not None else 'given'} for {dtype}")
    if scale is not None:
        kinds, width = scales_stored(dtype, keys.shape[3])
        checks.typed("scale", scale, kinds)
        checks.shaped("scale", scale, (*codes.shape[:3], width))
    checks.unexpanded(codes=codes, scale=scale)


def _check_room(at: int | Tensor, keys: Tensor, codes: Tensor) -> None:
    new, room = keys.shape[2], codes.shape[2]
    if isinstance(at, Tensor):
        checks.typed("at", at, checks.PLACES)
        checks.beside(keys.device, at=at)
        if at.shape not in ((1,), (len(keys),)):
            raise InputError(f"at must be (1,) or ({len(keys)},); got {tuple(at.shape)}")
        if at.is_cuda or at.numel() == 0:
            return
    first, last = (int(at.min()), int(at.max())) if isinstance(at, Tensor) else (at, at)
    if first < 0 or last + new > room:
        raise InputError(f"at must be 0 to {room - new} for {new} new keys of {room}; got {last}")


def _unsupported(keys: Tensor, codes: Tensor, scale: Tensor | None) -> str | None:
    """What the kernel does not take, as a sentence."""
    if keys.dtype not in KEYS:
        return f"keys must be bfloat16, float16 or float32; got {keys.dtype}"
    if keys.shape[3] not in WIDTHS:
        return f"keys must have 64 or 128 dimensions; got {keys.shape[3]}"
    if len(keys) * keys.shape[1] > checks.MOST_BLOCKS:
        limit, count = checks.MOST_BLOCKS, len(keys) * keys.shape[1]
        return f"keys must be at most {limit} rows x heads; got {count}"
    packed = {"keys": keys, "codes": codes} | ({} if scale is None else {"scale": scale})
    return checks.ungraded(keys=keys) or checks.unpacked(**packed)
