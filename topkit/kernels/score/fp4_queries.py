"""Lightning's queries of fp4 made ready to be multiplied by keys of fp4: once a token, by a kernel of its own.

A head is one column: its e2m1 as operands (topkit.kernels.score.fp4_fields), which are exact. Its unit holds its scale
and its gate.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels import fp4
from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.fp4_fields import fields, scales_of, side_by_side
from topkit.kernels.score.gated_sum import shared_unit
from topkit.kernels.score.layout import Layout


def ready_packed(
    queries: Tensor, words: Tensor, gates: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Columns and units of packed queries [B, H, Tq, W], as topkit.kernels.score.queries.of_list reads them.

    Shapes: words [B, H, Tq, 1], scales of blocks; gates [B, Tq, H]; columns [B, 1, Tq, 2 * W * padded] e5m2 or
    float16; units [B, 1, Tq, 2 * padded] float32.
    """
    rows, _, count, _ = queries.shape
    if fp4.askew(queries):
        queries = queries.clone(memory_format=torch.contiguous_format)
    kind = torch.float8_e5m2 if layout.dtype == "mxfp4" else torch.float16
    size = layout.planes * layout.bytes * layout.columns
    columns = queries.new_empty(rows, 1, count, size, dtype=kind)
    units = gates.new_empty(rows, 1, count, 2 * layout.padded)
    if units.numel():
        with torch.cuda.device_of(queries):  # Triton launches on the current device
            _ready[(rows * count,)](
                queries, queries.stride(), words, words.stride(), gates, gates.stride(),
                columns, units, count, layout, num_warps=4, launch_pdl=has_pdl(queries.device),
            )  # fmt: skip
    return columns, units


@triton.jit
def _ready(
    queries, by, words, words_by, gates, gates_by, columns, units, count, LAYOUT: tl.constexpr
):
    wait_then_launch()
    index = tl.program_id(0).to(tl.int64)
    query, batch = index % count, index // count
    head, byte = tl.arange(0, LAYOUT.padded), tl.arange(0, LAYOUT.bytes)
    real = head < LAYOUT.group
    far = head.to(tl.int64)  # of a long prompt, heads are far apart
    at = queries + batch * by[0] + far[:, None] * by[1] + query * by[2] + byte[None, :]
    x = tl.load(at, mask=real[:, None], other=0)
    head_or_last = tl.minimum(far, LAYOUT.group - 1)
    words += batch * words_by[0] + query * words_by[2]
    bits = scales_of(words, head_or_last * words_by[1], LAYOUT)
    operands, scale = fields(x, bits, LAYOUT)
    LENGTH: tl.constexpr = LAYOUT.operands[1]
    columns += index * (LENGTH * LAYOUT.columns)
    at = columns + head[:, None] * LENGTH + tl.arange(0, LENGTH)[None, :]
    tl.store(at, side_by_side(operands, LAYOUT))
    at = gates + batch * gates_by[0] + query * gates_by[1] + far * gates_by[2]
    unit = tl.load(at, mask=real, other=0.0)
    # What is positive of a product comes twice.
    unit *= 0.5 / (LAYOUT.group * LAYOUT.dim) ** 0.5 * LAYOUT.worth * LAYOUT.worth
    if LAYOUT.dtype == "mxfp4":
        unit *= tl.reshape(scale, [LAYOUT.padded])
    shared = shared_unit(unit)
    units += index * (2 * LAYOUT.padded)
    tl.store(units + head, unit / shared)
    tl.store(units + LAYOUT.padded + head, tl.zeros_like(unit) + shared)
