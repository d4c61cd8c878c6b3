"""A token's keys and values written into a cache in Triton: one program a row and KV head."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch


def cache_append(
    keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, at: Tensor
) -> None:
    """As the reference's, of checked arguments."""
    rows, groups, room, _ = keys.shape
    if rows * groups == 0:
        return
    # What is copied byte by byte need not be of a type that the GPU computes with.
    keys, values, new_keys, new_values = map(_copyable, (keys, values, new_keys, new_values))
    with torch.cuda.device_of(keys):  # Triton launches on the current device
        _put[(rows * groups,)](
            *(x for t in (keys, new_keys, values, new_values) for x in (t, t.stride())),
            at, groups, room, keys.shape[3], values.shape[3],
            triton.next_power_of_2(max(keys.shape[3], values.shape[3])),
            num_warps=1, launch_pdl=has_pdl(keys.device),
        )  # fmt: skip


def _copyable(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


@triton.jit
def _put(
    keys, keys_by, new_keys, new_keys_by, values, values_by, new_values, new_values_by,
    at, groups, room, D, DV, WIDTH: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    row, group = (tl.program_id(0) // groups).to(tl.int64), (tl.program_id(0) % groups).to(tl.int64)
    slot = tl.load(at).to(tl.int64)
    there = (slot >= 0) & (slot < room)
    d = tl.arange(0, WIDTH)
    _copied(new_keys, new_keys_by, keys, keys_by, row, group, slot, d, D, there)
    _copied(new_values, new_values_by, values, values_by, row, group, slot, d, DV, there)


@triton.jit
def _copied(new, new_by, buffer, by, row, group, slot, d, D, there):
    x = tl.load(new + row * new_by[0] + group * new_by[1] + d * new_by[3], mask=d < D)
    place = buffer + row * by[0] + group * by[1] + slot * by[2] + d * by[3]
    tl.store(place, x, mask=there & (d < D))
