"""Dot products with chosen keys in Triton: a program a part of a list, for the heads that share it."""

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

# Keys of a program, and its warps.
BLOCK, WARPS = 64, 4


def gather_scores(queries: Tensor, keys: Tensor, indices: Tensor) -> Tensor:
    """As topkit.kernels.gather_attention.gather_scores's, of checked arguments."""
    batch, heads, count, dim = queries.shape
    groups, kept = keys.shape[1], indices.shape[3]
    per_row = max(indices.shape[1], groups)
    keys, indices = keys.expand(batch, -1, -1, -1), indices.expand(batch, per_row, -1, -1)
    out = queries.new_empty(batch, heads, count, kept, dtype=torch.float32)
    if out.numel() == 0:
        return out
    group = heads // per_row
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        _score[(batch * per_row * count, triton.cdiv(kept, BLOCK))](
            queries, queries.stride(), keys, keys.stride(), indices, indices.stride(),
            out, out.stride(), per_row, groups, count, kept, keys.shape[2],
            group, dim, BLOCK, max(16, triton.next_power_of_2(group)),
            interpreted() and queries.dtype == torch.bfloat16,
            num_warps=WARPS, launch_pdl=has_pdl(queries.device),
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["kept", "length"])
def _score(
    queries, queries_by, keys, keys_by, indices, indices_by, out, out_by,
    per_row, groups, count, kept, length,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    at = tl.program_id(0)
    query, listed, batch = at % count, at // count % per_row, at // count // per_row
    query, listed, batch = query.to(tl.int64), listed.to(tl.int64), batch.to(tl.int64)
    j, d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    indices += batch * indices_by[0] + listed * indices_by[1] + query * indices_by[2]
    slot = tl.load(indices + j * indices_by[3], mask=j < kept, other=-1)
    head = (listed * GROUP + tl.arange(0, ROWS))[:, None]
    real = (tl.arange(0, ROWS) < GROUP)[:, None]
    queries += batch * queries_by[0] + query * queries_by[2]
    q = tl.load(queries + head * queries_by[1] + d[None, :], mask=real, other=0.0)
    keys += batch * keys_by[0] + (listed * groups // per_row) * keys_by[1]
    there = (slot >= 0) & (slot < length)
    place = slot.to(tl.int64)[:, None] * keys_by[2] + d[None, :]
    k = tl.load(keys + place, mask=there[:, None], other=0.0)
    scores = dot(q, k.T, UPCAST)
    scores = tl.where((slot < length)[None, :], scores, float("nan"))
    scores = tl.where((slot >= 0)[None, :], scores, float("-inf"))
    out += batch * out_by[0] + query * out_by[2]
    tl.store(out + head * out_by[1] + j[None, :], scores, mask=real & (j < kept)[None, :])
