"""Fields of 1, 2 or 4 bits, packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


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
    mask = (1 << bits) - 1
    planes = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return torch.cat(planes, -1)[..., :width]
