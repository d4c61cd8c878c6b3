"""Counter-based noise: the same number for the same place, in any batch, order or device."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.indexers.base import Step

_MASK = 0xFFFFFFFF


def noise(
    step: Step,
    length: int,
    asked: Tensor,
    *,
    slots: Tensor | None = None,
    salt: int = 0,
    per_query: bool = True,
    heads_together: int = 1,
    slots_together: int = 1,
) -> Tensor:
    """Uniform numbers in [0, 1), hashed from (seed, salt, layer, head, query and key position).

    Shapes: asked [B, H, Tq, ...], of which H, Tq and the device are read; slots [B or 1, H or 1, Tq
    or 1, n] (None: all `length` slots, n = length) -> [B or 1, H, Tq, n] float32. Positions count
    from each row's first real slot, so that padding changes nothing. `per_query=False` gives every
    query the same numbers; runs of `heads_together` heads, or of `slots_together` slots, share one.
    """
    heads, count, device = asked.shape[1], asked.shape[2], asked.device
    start = step.starts(device).to(torch.int64)
    if slots is None:
        slots = torch.arange(length, device=device)[None, None, None]
    keys = (slots - start[:, None, None, None]).div(slots_together, rounding_mode="floor")
    query = (step.stops(length, count, device) - start[:, None])[:, None, :, None]
    head = torch.arange(heads, device=device)[None, :, None, None] // heads_together
    tag = (step.layer * 0x27D4EB2F + step.seed * 0x165667B1 + salt * 0x9E3779B9) & _MASK
    place = _mix(query * int(per_query) * 0x85EBCA77 + head * 0xC2B2AE3D + tag)
    bits = _mix(keys * 0x9E3779B1 + place)
    # 24 bits are what a float32 holds exactly, so that 1.0 is never reached by rounding.
    return (bits >> 8).to(torch.float32) / (1 << 24)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser in int64 arithmetic (xor-shift and multiply, as murmur3's)."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
