"""Vectors as engines store them: fp8, int8 or packed fp4 with scales, and what they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import fp4

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_BYTES = (torch.uint8, torch.int8)
# Exponents of two, biased by 127: of a byte, or four in an int32.
_UE8M0 = (torch.uint8, torch.int32, torch.float8_e8m0fnu)
STORED = (*FP8, *_BYTES)


def is_stored(x: object) -> bool:
    """Whether a tensor holds codes that scales go with."""
    return isinstance(x, Tensor) and x.dtype in STORED


def scales_like(name: str, scale: Tensor, x: Tensor) -> Tensor:
    """Scales [..., n] of vectors x [..., W], n of each: one number, one a vector, or one a block of it.

    Raises: InputError for a shape that does not belong to x.
    """
    vectors = x.shape[:-1]
    if scale.numel() == 1:
        return scale.reshape(()).expand(vectors)[..., None]
    if scale.shape == vectors:
        return scale[..., None]
    if scale.shape[:-1] == vectors:
        return scale
    # One head that one of the two has no axis for.
    bare = tuple(size for size in vectors if size != 1)
    for own in (scale.shape, scale.shape[:-1]):
        if tuple(size for size in own if size != 1) == bare and len(own) > 0:
            return scale.reshape(*vectors, -1)
    raise InputError(
        f"scales of {name} must be one number, {list(vectors)} or {[*vectors, 'blocks']} for {name} "
        f"{list(x.shape)}; got {list(scale.shape)}"
    )


def floats(name: str, x: Tensor, scale: Tensor | None) -> Tensor:
    """Float32 [..., D] of codes [..., W] and their scales [..., n]; without scales floats are as they are.

    int8 is a number, uint8 the bits of an e4m3; either is two e2m1 where scales are exponents, one for 32.
    Raises: InputError for codes without scales, and scales that are NaN, infinite, 0 or negative.
    """
    if scale is None:
        if x.dtype in STORED:
            raise InputError(
                f"{name} must be a floating-point tensor of 16, 32 or 64 bits, or codes with scales; got "
                f"{_word(x)} without; give {name}_scale (1.0 where there is none)"
            )
        return x
    factors = _factors(name, scale)
    if x.dtype in _BYTES and scale.dtype in _UE8M0 and factors.shape[-1] * 16 == x.shape[-1]:
        return _mxfp4(x.view(torch.uint8), factors)
    if x.dtype == torch.uint8:
        # numpy has no fp8: its bytes come as such.
        x = x.view(torch.float8_e4m3fn)
    width, parts = x.shape[-1], factors.shape[-1]
    if width % parts:
        raise InputError(f"{name} of {width} numbers cannot have {parts} scales each")
    decoded = x.float().unflatten(-1, (parts, -1)) * factors[..., None]
    return decoded.flatten(-2)


def _factors(name: str, scale: Tensor) -> Tensor:
    """Scales in float32, checked. Four exponents stand in an int32, the lowest byte first."""
    if scale.dtype == torch.int32:
        scale = scale.contiguous().view(torch.uint8)
    if scale.dtype in _UE8M0:
        scale = fp4.factors(scale.view(torch.uint8))
    if not scale.is_floating_point():
        raise InputError(
            f"scales of {name} must be floats, or exponents in uint8; got {scale.dtype}"
        )
    scale = scale.float()
    if not scale.is_meta and not bool(((scale > 0) & scale.isfinite()).all()):
        bad = ~((scale > 0) & scale.isfinite())
        at = bad.nonzero()[0].tolist()
        raise InputError(
            f"scales of {name} must be positive and finite; got {float(scale[tuple(at)])} at {at}, one of "
            f"{int(bad.sum())}: the bytes are of another format or arrangement, or were never written"
        )
    return scale


def _mxfp4(codes: Tensor, factors: Tensor) -> Tensor:
    """Two e2m1 numbers a byte, the first in the low half; a factor for 32."""
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=codes.device)
    table = torch.cat([magnitudes, -magnitudes])
    halves = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    numbers = table.to(codes.device)[halves.long()]
    return (numbers.unflatten(-1, (-1, 32)) * factors[..., None]).flatten(-2)


def _word(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
