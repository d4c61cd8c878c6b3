# pyright: strict
"""Signs of random projections, in tables of some bits: what falls together, and how probably."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.noise import salt_of
from topkit.kernels.counter_noise import counter_noise

_PLANES = 8  # salt
# Comparisons at a time: bytes of a block, on a CPU and elsewhere.
_ROOM = {"cpu": 1 << 22}
_ELSEWHERE = 1 << 28


def buckets(vectors: Tensor, bits: int, tables: int, step: Step) -> Tensor:
    """The bucket of each vector [..., D] in each table [..., tables] int16.

    The planes are those of the seed and layer, the same for all heads, and held once a process. Products are
    those of float64, so that hardly any sign is rounding's.
    """
    seed = int(step.seed)
    planes = _planes(seed, salt_of(step, _PLANES), vectors.shape[-1], bits * tables, vectors.device)
    powers = 2 ** torch.arange(bits, device=vectors.device)
    flat = vectors.reshape(-1, vectors.shape[-1])
    codes = torch.empty(len(flat), tables, dtype=torch.int16, device=vectors.device)
    each = max(1, _room(vectors) // (bits * tables))
    for first in range(0, len(flat), each):
        part = (flat[first : first + each].double() @ planes > 0).view(-1, tables, bits)
        codes[first : first + each] = (part * powers).sum(-1)
    return codes.view(*vectors.shape[:-1], tables)


def collisions(queries: Tensor, keys: Tensor) -> Tensor:
    """In how many tables each query and key fall together [B, Hq, Tq, T], at most 255 of them counted.

    Shapes: buckets of queries [B, Hq, Tq, L] and of keys [B, Hk, T, L].
    """
    rows, heads, count, tables = queries.shape
    groups, length = keys.shape[1:3]
    grouped = queries.view(rows, groups, -1, 1, tables)
    counted = torch.empty(*grouped.shape[:3], length, dtype=torch.uint8, device=keys.device)
    width = max(1, _room(keys) // max(1, rows * heads * count * tables))
    for first in range(0, length, width):
        same = keys[:, :, None, first : first + width] == grouped
        kind = torch.uint8 if tables < 256 else torch.int32
        counted[..., first : first + width] = same.sum(-1, dtype=kind).clamp_max(255)
    return counted.view(rows, heads, count, length)


def chance(cosine: Tensor, bits: int, tables: int) -> Tensor:
    """How probably two vectors of this cosine fall together in two tables at least, float64."""
    same = (1 - cosine.double().clamp(-1, 1).acos() / math.pi) ** bits
    other = 1 - same
    return 1 - other**tables - tables * same * other ** (tables - 1)


def _room(x: Tensor) -> int:
    return _ROOM.get(x.device.type, _ELSEWHERE)


@lru_cache(maxsize=128)
def _planes(seed: int, salt: int, width: int, count: int, device: torch.device) -> Tensor:
    """Normal numbers [width, count] float64, by Box and Muller of hashed ones."""
    stop = torch.arange(2, device=device)[None]
    draws = counter_noise(width * count, stop, 1, seed=seed, salt=salt, backend="torch")[0, 0]
    # No draw is 1, so that no logarithm is of 0.
    radius = (-2 * (1 - draws[0].double()).log()).sqrt()
    return (radius * (2 * math.pi * draws[1].double()).cos()).view(width, count)
