"""Counter-based noise: the same number for the same place, in any batch, order or device."""

# pyright: strict
from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.kernels.blocks import blocks


def noise(
    step: Step,
    length: int,
    queries: Tensor,
    *,
    slots: Tensor | None = None,
    salt: int = 0,
    per_query: bool = True,
    heads_together: int = 1,
    slots_together: int = 1,
) -> Tensor:
    """Uniform numbers in [0, 1), hashed from (seed, salt, layer, head, query and key position).

    Shapes: queries [B, H, Tq, ...], of which H, Tq and the device are read; slots [B or 1, H or 1, Tq
    or 1, n] (None: all `length` slots, n = length) -> [B or 1, H, Tq, n] float32. Positions count
    from each row's first real slot, so that padding changes nothing. `per_query=False` gives every
    query the same numbers; runs of `heads_together` heads, or of `slots_together` slots, share one.
    """
    heads, count, device = queries.shape[1], queries.shape[2], queries.device
    start = step.starts(device).to(torch.int64)
    if slots is None:
        slots = torch.arange(length, device=device)[None, None, None]
    keys = _unexpanded(slots) - start[:, None, None, None]
    keys = keys.div(slots_together, rounding_mode="floor")
    position = (step.stops(length, count, device) - start[:, None])[:, None, :, None]
    head = torch.arange(heads, device=device)[None, :, None, None] // heads_together
    tag = (step.layer * 0x27D4EB2F + step.seed * 0x165667B1 + salt * 0x9E3779B9) & 0xFFFFFFFF
    places = _mix(
        (position * int(per_query) * 0x85EBCA77 + head * 0xC2B2AE3D + tag).to(torch.int32)
    )
    keys = (keys * 0x9E3779B1).to(torch.int32)
    shape = (max(len(keys), len(places)), *places.shape[1:3], keys.shape[3])
    draws = torch.empty(shape, dtype=torch.float32, device=device)
    for part in blocks(shape[3], math.prod(shape[:3]), device):
        bits = _mix(keys[..., part] + places)
        # 24 bits are what a float32 holds exactly, so that 1.0 is never reached by rounding.
        bits = bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        torch.mul(bits, 2.0**-24, out=draws[..., part])
    return draws


def seed_of(seed: int, *places: object) -> int:
    """The seed of one text, a sample or a haystack: what lasts for a stream is drawn anew in the next."""
    return zlib.crc32(repr((seed, *places)).encode())


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
