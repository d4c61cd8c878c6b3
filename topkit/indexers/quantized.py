"""Keys in 8, 4 or 2 bits, one scale a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Step
from topkit.indexers.checks import choice, flag
from topkit.indexers.packing import pack, unpack
from topkit.indexers.scored import Codes, Scored
from topkit.kernels.score import score

# The largest code of each type: a key's scale is its largest magnitude over this.
_LARGEST = {"fp8_e4m3": 448, "int8": 127, "int4": 8, "int2": 2}
_PACKED_BITS = {"int4": 4, "int2": 2}


@dataclass(frozen=True)
class quantized(Scored):
    """Scores float queries against rounded keys, and gives up the digits that rounding drops.

    int8 rounds to the nearest of -127..127; int4 and int2 use all 16 and 4 levels, at odd halves
    (-1.5, -0.5, 0.5, 1.5), and are packed. scale="pow2" rounds the scale up to a power of two, held
    in one byte, as DeepSeek's ue8m0 does; hadamard=True spreads outliers by an orthonormal rotation.
    Source: DeepSeek-V3.2-Exp, inference/kernel.py (fp8, pow2, Hadamard).
    """

    dtype: str = "int8"
    hadamard: bool = False
    scale: str = "float"

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "DeepSeek-V3.2-Exp"
    cost: ClassVar[str] = "reads 1, 1/2 or 1/4 byte a dimension, and a scale"
    examples: ClassVar[tuple[str, ...]] = (
        "quantized()",
        "quantized(dtype='fp8_e4m3', hadamard=True, scale='pow2')",
        "quantized(dtype='int4', scale='pow2')",
        "quantized(dtype='int2', hadamard=True)",
    )

    def __post_init__(self) -> None:
        choice(self, "dtype", _LARGEST)
        choice(self, "scale", ("float", "pow2"))
        flag(self, "hadamard")

    def encode(self, keys: Tensor, step: Step) -> Codes:
        keys = hadamard_rotate(keys) if self.hadamard else keys
        codes, scale = quantize(keys, self.dtype, self.scale)
        if self.scale == "pow2":
            exponent = torch.frexp(scale).exponent - 1  # frexp's mantissa is a half, not one
            return {"codes": codes, "exponent": exponent.to(torch.int8)}
        return {"codes": codes, "scale": scale}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        queries = hadamard_rotate(queries) if self.hadamard else queries
        scores = score(queries, levels(codes["codes"], self.dtype, queries.shape[-1]))
        scale = _power(codes["exponent"]) if self.scale == "pow2" else codes["scale"]
        scores.unflatten(1, (scale.shape[1], -1)).mul_(scale.mT[:, :, None])
        return scores


def quantize(vectors: Tensor, dtype: str, scale: str = "float") -> tuple[Tensor, Tensor]:
    """Codes of vectors [..., D] and their scales [..., 1] in float32; see `levels` for the way back.

    Shapes: codes [..., D] float8_e4m3fn or int8, or uint8 [..., D / 2] (int4), [..., D / 4] (int2).
    """
    vectors, largest = vectors.float(), _LARGEST[dtype]
    # A vector of zeros, or of numbers whose scale would be subnormal, still has a scale.
    scales = (vectors.abs().amax(-1, keepdim=True) / largest).clamp_min(2.0**-126)
    if scale == "pow2":
        mantissa, exponent = torch.frexp(scales)
        scales = _power(exponent - (mantissa == 0.5).int())
    codes = vectors / scales
    if dtype == "fp8_e4m3":
        return codes.clamp(-largest, largest).to(torch.float8_e4m3fn), scales
    if dtype == "int8":
        return codes.round().to(torch.int8), scales
    fields = (codes.floor() + largest).clamp(0, 2 * largest - 1).to(torch.uint8)
    return pack(fields, _PACKED_BITS[dtype]), scales


def levels(codes: Tensor, dtype: str, width: int) -> Tensor:
    """What codes stand for, before the scale [..., width] float32."""
    if dtype == "fp8_e4m3":
        return _from_e4m3(codes)
    if dtype == "int8":
        return codes.float()
    return unpack(codes, _PACKED_BITS[dtype], width).float() - (_LARGEST[dtype] - 0.5)


def hadamard_rotate(vectors: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of the last dim, in float32.

    Butterflies rather than a matmul: the same bits for a vector whatever stands beside it.
    Raises: InputError unless the last dim is a power of two.
    """
    width = vectors.shape[-1]
    if width & (width - 1) or width == 0:
        raise InputError(f"hadamard needs a head dim that is a power of two; got {width}")
    vectors, half = vectors.float(), 1
    while half < width:
        a, b = vectors.unflatten(-1, (-1, 2, half)).unbind(-2)
        vectors = torch.stack([a + b, a - b], -2).flatten(-3)
        half *= 2
    return vectors * width**-0.5


def _power(exponent: Tensor) -> Tensor:
    """2 ** exponent in float32, by its bits: exact on every device."""
    return ((exponent.to(torch.int32) + 127).clamp(1, 254) << 23).view(torch.float32)


def _from_e4m3(codes: Tensor) -> Tensor:
    """float8_e4m3fn to float32; torch's own conversion is several times slower on a CPU.

    Moved to float16's fields a code reads 2**-8 times what it is, subnormals too; the sign, which
    int8 to int16 extends, is kept in the top bit alone.
    """
    half = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return half.view(torch.float16).float().mul_(256)
