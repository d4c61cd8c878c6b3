"""Dot products of queries with keys in Triton: a program some slots of a KV head."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl, interpreted
from topkit.kernels.gather_attention.triton_impl import dot
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.triton_impl import seen, window

# Slots of a program, and its warps.
BLOCK, WARPS = 128, 4


def score_keys(queries: Tensor, keys: Tensor, start: Tensor | None, stop: Tensor | None) -> Tensor:
    """As topkit.kernels.score_keys.score_keys's, of checked arguments."""
    rows, heads, count, dim = queries.shape
    groups, length = keys.shape[1:3]
    keys, group = keys.expand(rows, -1, -1, -1), heads // groups
    out = queries.new_empty(rows, heads, count, length, dtype=torch.float32)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        _score[(triton.cdiv(length, BLOCK), rows * groups, count)](
            queries, queries.stride(), keys, keys.stride(), *window(start, stop), out, out.stride(),
            length, groups, group, dim, BLOCK, max(16, triton.next_power_of_2(group)),
            interpreted() and queries.dtype == torch.bfloat16,
            num_warps=WARPS, launch_pdl=has_pdl(queries.device),
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["length"])
def _score(
    queries, queries_by, keys, keys_by, start, stop, out, out_by, length, groups,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    batch, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    query = tl.program_id(2)
    first, end = seen(start, stop, batch, query, length)
    batch, query = batch.to(tl.int64), query.to(tl.int64)
    head = (group * GROUP + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    real = (tl.arange(0, ROWS) < GROUP)[:, None]
    d = tl.arange(0, D)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    visible = (slot >= first) & (slot < end)
    queries += batch * queries_by[0] + query * queries_by[2]
    q = tl.load(queries + head * queries_by[1] + d[None, :], mask=real, other=0.0)
    keys += batch * keys_by[0] + group.to(tl.int64) * keys_by[1]
    place = slot.to(tl.int64)[:, None] * keys_by[2] + d[None, :]
    k = tl.load(keys + place, mask=visible[:, None], other=0.0)
    scores = tl.where(visible[None, :], dot(q, k.T, UPCAST), float("-inf"))
    out += batch * out_by[0] + query * out_by[2]
    tl.store(out + head * out_by[1] + slot[None, :], scores, mask=real & (slot < length)[None, :])
