"""How keys are encoded: in 8, 4, 2 bits with a scale, by their signs, in blocks of fp4; and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError
from topkit.kernels import fp4

# The largest code of each type: a key's scale is its largest magnitude over this.
LARGEST = {"fp8_e4m3": 448, "int8": 127, "int4": 8, "int2": 2}
# What a field of packed codes holds; other codes are one element a dimension.
PACKED_BITS = {"int4": 4, "int2": 2, "sign": 1}
DTYPES = ("sign", "int2", "int4", "int8", "fp8_e4m3", *fp4.BLOCK)


def stored(dtype: str, dim: int) -> tuple[torch.dtype, int]:
    """How codes of keys of `dim` dimensions are stored: the tensor's dtype, and its last size."""
    if dtype in PACKED_BITS:
        return torch.uint8, -(-dim * PACKED_BITS[dtype] // 8)
    if dtype in fp4.BLOCK:
        return torch.uint8, -(-dim // 2)
    return (torch.int8 if dtype == "int8" else torch.float8_e4m3fn), dim


def scales_stored(dtype: str, dim: int) -> tuple[tuple[torch.dtype, ...], int]:
    """How the scales of such codes may be stored: dtypes, and their last size."""
    if dtype in fp4.BLOCK:
        return (fp4.scale_type(dtype),), -(-dim // fp4.BLOCK[dtype])
    return (torch.float32, torch.int8), 1


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
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    fields = _fields(packed, _masks(bits, packed.device)) >> shifts[:, None]
    return fields.transpose(-3, -2).flatten(-2)[..., : packed.shape[-1]].flatten(-2)[..., :width]


def _masks(bits: int, device: torch.device) -> Tensor:
    """Of each plane, the bits of its fields in a word of eight bytes [planes] int64."""
    planes = [bytes([((1 << bits) - 1) << shift]) * 8 for shift in range(0, 8, bits)]
    masks = [int.from_bytes(plane, "little", signed=True) for plane in planes]
    return torch.tensor(masks, device=device)


def _fields(packed: Tensor, masks: Tensor) -> Tensor:
    """Packed bytes [..., W] as uint8 [..., words, planes, 8], of a plane its own bits, in their place.

    Words are masked whole; zeros stand for the bytes that the last one lacks.
    """
    return (_words(packed)[..., None] & masks).view(torch.uint8).unflatten(-1, (-1, 8))


def _words(packed: Tensor) -> Tensor:
    """Bytes [..., W] as int64 [..., ceil(W / 8)], zeros behind the last."""
    count, (*others, last) = packed.shape[-1], packed.stride()
    if last == 1 and not any(by % 8 for by in (count, packed.storage_offset(), *others)):
        return packed.view(torch.int64)
    padded = packed.new_zeros(*packed.shape[:-1], -(-count // 8) * 8)
    padded[..., :count] = packed
    return padded.view(torch.int64)


def quantize(
    vectors: Tensor, dtype: str, scale: str = "float", amax: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Codes of vectors [..., D] and their scales [..., 1] in float32; see `levels` for the way back.

    Shapes: codes [..., D] float8_e4m3fn or int8, or uint8 [..., D / 2] (int4), [..., D / 4] (int2).
    amax: a vector whose largest magnitude is smaller has the scale of one of this magnitude.
    """
    vectors, largest = vectors.float(), LARGEST[dtype]
    # A vector of zeros, or of numbers whose scale would be subnormal, still has a scale.
    magnitude = vectors.abs().amax(-1, keepdim=True).clamp_min(amax)
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
    """What codes stand for, before the scale [..., width] float32."""
    if dtype in PACKED_BITS:
        return unpack(codes, PACKED_BITS[dtype], width).float() - (LARGEST[dtype] - 0.5)
    return codes.float() if dtype == "int8" else _from_e4m3(codes)


def decoder(dtype: str, width: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from codes [..., width] to their levels, of signs to their bits, in float32.

    They come in the order and in the units in which they are quickest to unpack; `by_word` puts vectors
    in the same order, and in units that leave products as they are.
    """
    if dtype == "fp8_e4m3":
        return _from_e4m3
    if dtype == "int8":
        return torch.Tensor.float
    masks = _masks(PACKED_BITS[dtype], device)
    if dtype == "sign":
        return lambda codes: _fields(codes, masks).flatten(-3).float()
    middles = (LARGEST[dtype] - 0.5) * _units(dtype, device).repeat_interleave(8)
    middles = middles.repeat(-(-width // 8))
    return lambda codes: _fields(codes, masks).flatten(-3).float().sub_(middles)


def by_word(vectors: Tensor, dtype: str) -> Tensor:
    """Vectors [..., D] in the order and units of `decoder`, zeros where it has none of their dimensions."""
    if dtype not in PACKED_BITS:
        return vectors
    units = _units(dtype, vectors.device)
    planes = pad(vectors, (0, -vectors.shape[-1] % len(units))).unflatten(-1, (len(units), -1))
    words = pad(planes, (0, -planes.shape[-1] % 8)).unflatten(-1, (-1, 8)) / units[:, None, None]
    return words.transpose(-3, -2).flatten(-3)


def _units(dtype: str, device: torch.device) -> Tensor:
    """What the lowest bit of a plane's fields counts in its byte [planes]."""
    return torch.exp2(torch.arange(0.0, 8.0, PACKED_BITS[dtype], device=device))


def hadamard_rotate(vectors: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of the last dim, in float32.

    Butterflies rather than a matmul: the same bits for a vector whatever stands beside it.
    Raises: InputError unless the last dim is a power of two.
    """
    width = vectors.shape[-1]
    if width & (width - 1) or width == 0:
        raise InputError(
            f"hadamard needs a head dim that is a power of two; got {width}; give hadamard=False"
        )
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
