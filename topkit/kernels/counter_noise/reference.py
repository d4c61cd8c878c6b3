"""Counter-based noise in torch: the definition, a block of slots at a time."""

# pyright: strict

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from topkit.kernels.blocks import blocks


def counter_noise(
    slots: Tensor | int,
    stop: Tensor,
    heads: int,
    seed: tuple[int | Tensor, int],
    start: Tensor | None,
    together: Mapping[str, int],
) -> Tensor:
    """As topkit.kernels.counter_noise.counter_noise."""
    device = stop.device
    first = torch.zeros(1, dtype=torch.int64, device=device) if start is None else start.long()
    if isinstance(slots, int):
        slots = torch.arange(slots, device=device)[None, None, None]
    keys = _unexpanded(slots) - first[:, None, None, None]
    keys = keys.div(together["slots"], rounding_mode="floor")
    position = (stop - first[:, None])[:, None, :, None]
    head = torch.arange(heads, device=device)[None, :, None, None] // together["heads"]
    own = position * int(together["per_query"]) * 0x85EBCA77 + head * 0xC2B2AE3D
    places = _mix((own + ((seed[0] * 0x165667B1 + seed[1]) & 0xFFFFFFFF)).to(torch.int32))
    keys = (keys * 0x9E3779B1).to(torch.int32)
    shape = (max(len(keys), len(places)), *places.shape[1:3], keys.shape[3])
    draws = torch.empty(shape, dtype=torch.float32, device=device)
    for part in blocks(shape[3], math.prod(shape[:3]), device):
        bits = _mix(keys[..., part] + places)
        # 24 bits are what a float32 holds exactly, so that 1.0 is never reached by rounding.
        bits = bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        torch.mul(bits, 2.0**-24, out=draws[..., part])
    return draws


def _mix(bits: Tensor) -> Tensor:
    """A 32-bit finaliser (xor-shift and multiply, as murmur3's), in place in int32, which wraps."""
    _xor_shift(bits, 16)
    bits *= 0x85EBCA6B - (1 << 32)
    _xor_shift(bits, 13)
    bits *= 0xC2B2AE35 - (1 << 32)
    return _xor_shift(bits, 16)


def _xor_shift(bits: Tensor, by: int) -> Tensor:
    # An int32 is shifted with its sign, which is masked off.
    return bits.bitwise_xor_((bits >> by).bitwise_and_((1 << (32 - by)) - 1))


def _unexpanded(slots: Tensor) -> Tensor:
    """Slots without the copies that an expanded tensor stands for."""
    for dim in range(3):
        if slots.stride(dim) == 0:
            slots = slots.narrow(dim, 0, 1)
    return slots
