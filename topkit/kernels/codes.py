"""How keys are encoded: in 8, 4, 2 bits with a scale, or by their signs; and the way back."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError

# The largest code of each type: a key's scale is its largest magnitude over this.
LARGEST = {"fp8_e4m3": 448, "int8": 127, "int4": 8, "int2": 2}
# What a field of packed codes holds; other codes are one element a dimension.
PACKED_BITS = {"int4": 4, "int2": 2, "sign": 1}
DTYPES = ("sign", "int2", "int4", "int8", "fp8_e4m3")


def stored(dtype: str, dim: int) -> tuple[torch.dtype, int]:
    """How codes of keys of `dim` dimensions are stored: the tensor's dtype, and its last size."""
    if dtype in PACKED_BITS:
        return torch.uint8, -(-dim * PACKED_BITS[dtype] // 8)
    return (torch.int8 if dtype == "int8" else torch.float8_e4m3fn), dim


def signs(vectors: Tensor) -> Tensor:
    """One bit a dimension [..., ceil(D / 8)] uint8; zero counts as positive."""
    return pack((vectors >= 0).view(torch.uint8), 1)


def pack(fields: Tensor, bits: int) -> Tensor:
    """Pack uint8 fields [..., D] < 2**bits into [..., ceil(D * bits / 8)] bytes.

    Field j of a plane of W bytes goes to byte j % W: whole planes unpack without interleaving.
    """
    planes = 8 // bits
    fields = pad(fields, (0, -fields.shape[-1] % planes)).unflatten(-1, (planes, -1))
    packed = fields[..., 0, :].clone()
    for plane in range(1, planes):
        packed |= fields[..., plane, :] << (bits * plane)
    return packed


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The first `width` fields [..., width] uint8 of packed bytes."""
    fields = _fields(packed, bits).transpose(-3, -2).flatten(-2)  # [..., planes, W and more]
    return fields[..., : packed.shape[-1]].flatten(-2)[..., :width]


def _fields(packed: Tensor, bits: int) -> Tensor:
    """The fields of packed bytes [..., W] as uint8 [..., words, planes, 8].

    A word of 64 bits is shifted and masked whole, once a plane; zeros stand for the bytes that the
    last one lacks.
    """
    count, mask = packed.shape[-1], (1 << bits) - 1
    padded = packed.new_zeros(*packed.shape[:-1], -(-count // 8) * 8)
    padded[..., :count] = packed
    shifts = torch.arange(0, 8, bits, device=packed.device)
    words = padded.view(torch.int64)[..., None] >> shifts
    words &= int.from_bytes(bytes([mask]) * 8, "little")
    return words.view(torch.uint8).unflatten(-1, (-1, 8))


def quantize(vectors: Tensor, dtype: str, scale: str = "float") -> tuple[Tensor, Tensor]:
    """Codes of vectors [..., D] and their scales [..., 1] in float32; see `levels` for the way back.

    Shapes: codes [..., D] float8_e4m3fn or int8, or uint8 [..., D / 2] (int4), [..., D / 4] (int2).
    """
    vectors, largest = vectors.float(), LARGEST[dtype]
    # A vector of zeros, or of numbers whose scale would be subnormal, still has a scale.
    magnitude = vectors.abs().amax(-1, keepdim=True)
    # By a tensor: torch multiplies by a number's reciprocal on a GPU, which rounds otherwise.
    scales = (magnitude / torch.full_like(magnitude, largest)).clamp_min(2.0**-126)
    if scale == "pow2":
        mantissa, exponent = torch.frexp(scales)
        scales = power(exponent - (mantissa == 0.5).int())
    codes = vectors / scales
    if dtype == "fp8_e4m3":
        return codes.clamp_(-largest, largest).to(torch.float8_e4m3fn), scales
    if dtype == "int8":
        return codes.round_().to(torch.int8), scales
    fields = codes.floor_().add_(largest).clamp_(0, 2 * largest - 1).to(torch.uint8)
    return pack(fields, PACKED_BITS[dtype]), scales


def levels(codes: Tensor, dtype: str, width: int) -> Tensor:
    """What codes stand for, before the scale [..., width] float32; of signs the bits, 0 and 1."""
    if dtype not in PACKED_BITS:
        return levels_by_word(codes, dtype)
    return _levels(unpack(codes, PACKED_BITS[dtype], width), dtype)


def levels_by_word(codes: Tensor, dtype: str) -> Tensor:
    """`levels` in the order in which they are quickest to unpack, that of `by_word`."""
    if dtype == "fp8_e4m3":
        return _from_e4m3(codes)
    if dtype == "int8":
        return codes.float()
    return _levels(_fields(codes, PACKED_BITS[dtype]).flatten(-3), dtype)


def by_word(vectors: Tensor, dtype: str) -> Tensor:
    """Vectors [..., D] in the order of `levels_by_word`, zeros where it has none of their dimensions."""
    if dtype not in PACKED_BITS:
        return vectors
    planes = 8 // PACKED_BITS[dtype]
    vectors = pad(vectors, (0, -vectors.shape[-1] % planes)).unflatten(-1, (planes, -1))
    words = pad(vectors, (0, -vectors.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return words.transpose(-3, -2).flatten(-3)


def _levels(fields: Tensor, dtype: str) -> Tensor:
    return fields.float() if dtype == "sign" else fields.float().sub_(LARGEST[dtype] - 0.5)


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


def exponents(scale: Tensor) -> Tensor:
    """The int8 exponents of scales that are powers of two."""
    return (torch.frexp(scale).exponent - 1).to(torch.int8)  # its mantissa is a half, not one


def factors(scale: Tensor) -> Tensor:
    """Scales in float32, of scales or of their int8 exponents."""
    return power(scale) if scale.dtype == torch.int8 else scale


def power(exponent: Tensor) -> Tensor:
    """2 ** exponent in float32, by its bits: exact on every device."""
    return ((exponent.to(torch.int32) + 127).clamp(1, 254) << 23).view(torch.float32)


def _from_e4m3(codes: Tensor) -> Tensor:
    """float8_e4m3fn to float32; torch's own conversion is several times slower on a CPU.

    Moved to float16's fields a code reads 2**-8 times what it is, subnormals too; the sign, which
    int8 to int16 extends, is kept in the top bit alone. A NaN would read 480, next to the largest, 448.
    """
    if codes.is_cuda:
        return codes.float()
    bits = codes.view(torch.int8)
    half = bits.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    numbers = half.view(torch.float16).float().mul_(256)
    magnitudes = bits.bitwise_and(0x7F)
    # A maximum of bytes costs a tenth of what comparing each does.
    if magnitudes.numel() and magnitudes.amax() == 0x7F:
        numbers.masked_fill_(magnitudes == 0x7F, math.nan)
    return numbers
