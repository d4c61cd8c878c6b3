"""Counter-based noise in Triton: one launch, a program a query, head and block of slots."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Slots of a program.
BLOCK = 1024


def counter_noise(
    slots: Tensor | int,
    stop: Tensor,
    heads: int,
    seed: tuple[int | Tensor, int],
    start: Tensor | None,
    together: Mapping[str, int],
) -> Tensor:
    """As the reference's, of checked arguments."""
    named = None if isinstance(slots, int) else slots
    count, width = stop.shape[1], slots if isinstance(slots, int) else slots.shape[3]
    most = [1 if x is None else len(x) for x in (named, stop, start)]
    # What is expanded over rows has the same numbers in all of them.
    if named is not None and named.stride(0) == 0:
        most[0] = 1
    rows = max(most)
    draws = torch.empty(rows, heads, count, width, dtype=torch.float32, device=stop.device)
    if draws.numel() == 0:
        return draws
    by: Any = (0, 0, 0, 0) if named is None else _steps(named)
    with torch.cuda.device_of(stop):  # Triton launches on the current device
        _draw[(rows * heads * count, triton.cdiv(width, BLOCK))](
            named, by, stop, _step(stop, 0), _step(stop, 1), start, 0 if start is None else _step(start, 0),
            *seed_arguments(*seed), draws, heads, count, width,
            isinstance(seed[0], int), bool(together["per_query"]), together["heads"], together["slots"], BLOCK,
        )  # fmt: skip
    return draws


def _step(x: Tensor, dim: int) -> int:
    return 0 if x.shape[dim] == 1 else x.stride(dim)


def _steps(x: Tensor) -> tuple[int, ...]:
    return (*(_step(x, dim) for dim in range(3)), x.stride(3))


def seed_arguments(seed: int | Tensor, *salts: int) -> list[Any]:
    """A seed and salts as a kernel's arguments: of numbers the lower 32 bits, as an int32."""
    return [x if isinstance(x, Tensor) else _signed(x) for x in (seed, *salts)]


def _signed(number: int) -> int:
    low = number & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


@triton.jit
def mixed(bits):
    """A 32-bit finaliser (xor-shift and multiply, as murmur3's) of uint32."""
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def uniform(key, place):
    """Numbers in [0, 1) of hashed keys and places, uint32."""
    return (mixed(key + place) >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def tag_of(seed, salt, KNOWN: tl.constexpr):
    """What is hashed of a seed, or of one that lies somewhere, and of a salt, uint32."""
    own = seed if KNOWN else tl.load(seed)
    own = own.to(tl.int32).to(tl.uint32, bitcast=True)
    return own * 0x165667B1 + salt.to(tl.int32).to(tl.uint32, bitcast=True)


@triton.jit
def place_of(position, head, tag):
    """The hash of a query's position and head, uint32."""
    return mixed(position * 0x85EBCA77 + head * 0xC2B2AE3D + tag)


@triton.jit
def key_of(slot, TOGETHER: tl.constexpr):
    """The hash of a slot's distance from its row's first, uint32; runs of slots share one."""
    # Rounded down, also below zero.
    run = tl.where(slot < 0, slot - (TOGETHER - 1), slot) // TOGETHER
    return run.to(tl.int32).to(tl.uint32, bitcast=True) * 0x9E3779B1


@triton.jit(do_not_specialize=["seed", "salt"])
def _draw(
    slots, by, stop, stop_by_row, stop_by_query, start, start_by, seed, salt, draws, heads, count, width,
    KNOWN: tl.constexpr, PER_QUERY: tl.constexpr, HEADS: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0)
    query, head, row = at % count, at // count % heads, at // count // heads
    first = tl.full((), 0, tl.int32)
    if start is not None:
        first = tl.load(start + row * start_by).to(tl.int32)
    position = tl.full((), 0, tl.int32)
    if PER_QUERY:
        position = tl.load(stop + row * stop_by_row + query * stop_by_query).to(tl.int32) - first
    unit = (head // HEADS).to(tl.int32).to(tl.uint32, bitcast=True)
    place = place_of(position.to(tl.uint32, bitcast=True), unit, tag_of(seed, salt, KNOWN))
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = n
    if slots is not None:
        base = slots + row.to(tl.int64) * by[0] + head * by[1] + query * by[2]
        slot = tl.load(base + n * by[3], mask=n < width, other=0).to(tl.int32)
    numbers = uniform(key_of(slot - first, SLOTS), place)
    tl.store(draws + at.to(tl.int64) * width + n, numbers, mask=n < width)
