"""Keys in blocks of four-bit floats, each block with a scale of one byte: mxfp4 and nvfp4.

An element is e2m1: 0, 0.5, 1, 1.5, 2, 3, 4 or 6, and a sign. mxfp4 has one power of two (e8m0) for 32,
rounded up so that nothing saturates, as DeepSeek-V4's inference code and DeepGEMM have it; nvfp4 has one
e4m3 for 16, and is given vectors that were divided by the tensor's float32 scale. The last block of
a vector may be shorter. Source: OCP Microscaling Formats 1.0; NVIDIA, arXiv 2509.25149, appendix A.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError

# Elements of a block.
BLOCK = {"mxfp4": 32, "nvfp4": 16}
LARGEST = 6.0
# What a tensor's largest magnitude is of its scale (nvfp4): the largest e2m1 times the largest e4m3.
LARGEST_SCALED = LARGEST * 448.0
_NAN = 255  # of e8m0
# A float16 whose exponent and mantissa end with an e2m1's, without a sign, reads 2**-14 times as much.
_READS = 2.0**14
# Halfway between two magnitudes is the even code's: the upper one's at 0.75, 1.75 and 3.5.
_MIDDLES = tuple(
    math.nextafter(x, 0) if x in (0.75, 1.75, 3.5) else x
    for x in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5)
)


def scale_type(dtype: str) -> torch.dtype:
    """How the scale of a block is stored: its e8m0 bits, or e4m3."""
    return torch.uint8 if dtype == "mxfp4" else torch.float8_e4m3fn


def kind_of(codes: Tensor, scale: Tensor | None) -> str | None:
    """Which of both codes are, by how the scales of their blocks are stored; None where they are not packed.

    Raises: InputError where they are, and the scales are neither's.
    """
    if codes.dtype != torch.uint8:
        return None
    for dtype in BLOCK:
        if scale is not None and scale.dtype == scale_type(dtype):
            return dtype
    got = "none" if scale is None else scale.dtype
    raise InputError(
        f"packed keys must have scales of blocks, uint8 (mxfp4) or float8_e4m3fn (nvfp4); got {got}"
    )


def quantize(vectors: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Codes [..., ceil(D / 2)] uint8 of vectors [..., D], and the scales of their blocks.

    Element 2 j is the low half of byte j. A block of zeros has the least scale. NaN makes its block's scale NaN,
    as does an infinity for mxfp4; for nvfp4 that is cut.
    """
    size, width = BLOCK[dtype], vectors.shape[-1]
    blocks = pad(vectors.float(), (0, -width % size)).unflatten(-1, (-1, size))
    magnitude = blocks.abs().amax(-1)
    # By a tensor: torch multiplies by a number's reciprocal on a GPU, which rounds otherwise.
    scales = _encoded(magnitude / torch.full_like(magnitude, LARGEST), dtype)
    scaled = (blocks / factors(scales)[..., None]).flatten(-2).contiguous()
    codes = torch.bucketize(scaled.abs().double(), _middles(vectors.device)).to(torch.uint8)
    codes |= scaled.signbit().to(torch.uint8) << 3
    return (codes[..., 0::2] | codes[..., 1::2] << 4)[..., : -(-width // 2)], scales


@cache
def _middles(device: torch.device) -> Tensor:
    """In float64, which has a number between a middle and the float32 before it; copied to a device once."""
    return torch.tensor(_MIDDLES, dtype=torch.float64, device=device)


def _encoded(scales: Tensor, dtype: str) -> Tensor:
    """Scales as they are stored, none of them zero."""
    if dtype == "nvfp4":
        return scales.clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn)
    mantissa, exponent = torch.frexp(scales)
    bits = (exponent - (mantissa == 0.5).int() + 127).clamp(1, 254).masked_fill(scales == 0, 1)
    return bits.masked_fill(~scales.isfinite(), _NAN).to(torch.uint8)


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(scales: Tensor) -> Tensor:
    """Scales of 2, 4 or 8 blocks [..., n] as one word a vector [..., 1]: the first is its lowest byte."""
    return scales.view(torch.uint8).view(_WORDS[scales.shape[-1]])


def unworded(scales: Tensor) -> bool:
    """Whether vectors' scales stand at places where no word can be read."""
    count = scales.shape[-1]
    places = (scales.data_ptr(), scales.storage_offset(), *scales.stride()[:-1])
    return scales.stride(-1) != 1 or any(place % count for place in places)


def askew(codes: Tensor) -> bool:
    """Whether vectors of packed codes stand at places that are not all multiples of 16 bytes.

    Then a thread is not handed neighbours, which mxfp4's look-up takes for bytes of one block.
    """
    return any(place % 16 for place in (codes.data_ptr(), *codes.stride()[:-1]))


def factors(scales: Tensor) -> Tensor:
    """Scales of blocks in float32."""
    if scales.dtype != torch.uint8:
        return scales.float()
    powers = (scales.to(torch.int32) << 23).view(torch.float32)
    return powers.masked_fill(scales == _NAN, math.nan)


def dequantize(codes: Tensor, scales: Tensor, dtype: str, width: int) -> Tensor:
    """What codes of `width` dimensions stand for [..., width] float32."""
    words = decoded(codes, scales, dtype)
    return words.unflatten(-1, (4, -1)).mT.flatten(-2)[..., :width] * _READS


def decoded(codes: Tensor, scales: Tensor, dtype: str) -> Tensor:
    """2**-14 times what codes [..., W] stand for, in the order in which they are quickest to unpack.

    `in_order` puts vectors in the same order, and makes up for the factor.
    """
    words = _words(codes)
    fields = torch.stack([words << shift for shift in (12, 8, 4, 0)], -2)
    # The shift to the right doubles the sign, of which the top bit is kept.
    fields.bitwise_right_shift_(3).bitwise_and_(0x0E00 - 0x8000)
    each = factors(scales).repeat_interleave(BLOCK[dtype] // 4, -1)
    return fields.view(torch.float16).float().mul_(each[..., None, : words.shape[-1]]).flatten(-2)


def in_order(vectors: Tensor) -> Tensor:
    """Vectors [..., D] in the order and the units of `decoded`, zeros behind their dimensions."""
    return pad(vectors, (0, -vectors.shape[-1] % 4)).unflatten(-1, (-1, 4)).mT.flatten(-2) * _READS


def _words(codes: Tensor) -> Tensor:
    """Bytes [..., W] as int16 [..., ceil(W / 2)], of four elements each."""
    count, (*others, last) = codes.shape[-1], codes.stride()
    if last != 1 or any(by % 2 for by in (count, codes.storage_offset(), *others)):
        codes = pad(codes, (0, count % 2)).contiguous()
    return codes.view(torch.int16)
