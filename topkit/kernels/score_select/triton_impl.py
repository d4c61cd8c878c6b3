"""The best k keys by their packed codes, in one pass over the codes and none over scores.

A sample of the keys is scored to find a threshold; then every key is scored, and those that exceed it
are kept with their scores; `select_topk`'s last step finds the exact k among them. A list that the
sample misjudged is scored again, and its scores written, for that step to search.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl, multiprocessors
from topkit.kernels.pdl import launch_then_wait, wait_then_launch
from topkit.kernels.score.layout import Config, Layout, Source
from topkit.kernels.score.triton_impl import (
    CONFIGS,
    codes_of,
    prepare,
    score_codes,
    score_rows,
    scores_of,
    seen,
    slots_of,
    window,
)
from topkit.kernels.select_topk.triton_impl import (
    STATE,
    Plan,
    Work,
    collect,
    finish,
    floor_of,
    select_topk,
    settled,
    stretch,
    threshold,
)

# Programs a list that score it again, where they must.
RESCORING = 8


def score_select(
    source: Source,
    layout: Layout,
    k: int,
    start: Tensor | None,
    stop: Tensor | None,
    ranked: bool = False,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Slots [B, Hk, Tq, min(k, T)] int64 as `select_topk`'s, and which lists [B, Hk, Tq] met NaN.

    Shapes: as topkit.kernels.score_select.score_select.
    """
    codes, count = source.codes, source.queries.shape[2]
    config = config or CONFIGS[layout.name]
    rows, groups, length = codes.shape[:3]
    lists, plan = rows * groups * count, Plan(length, min(k, length), 32, 1 << 15)
    if plan.direct:
        scores = score_codes(source, layout, start, stop, config)
        slots, nan = select_topk(scores.flatten(0, 2), k, None, ranked)
    else:
        inputs = source.packed(), *window(start, stop), length, groups, count
        work = Work.of(lists, plan, codes.device)
        sampled = torch.empty(lists, plan.sample, dtype=torch.float32, device=codes.device)
        _sample[(plan.sample // (config.rows * layout.sharing), lists)](
            inputs,
            sampled,
            layout,
            plan.sample,
            config.rows,
            num_warps=config.warps,
            launch_pdl=has_pdl(codes.device),
        )
        threshold(sampled, None, plan, work, spread=False)
        tiles = -(-length // (layout.sharing * config.rows))
        each = config.share(tiles, lists, multiprocessors(codes.device))
        _filter[(lists, triton.cdiv(tiles, each))](
            inputs, work.state, work.candidates, each, layout, plan.capacity, config.rows,
            config.rows * layout.sharing // (32 * config.warps) if layout.apart else 0,
            config.stages, num_warps=config.warps, launch_pdl=has_pdl(codes.device),
        )  # fmt: skip
        # Written for a list whose candidates do not hold the answer, and for no other.
        scores = torch.empty(lists, length, dtype=torch.float32, device=codes.device)
        _rescore[(min(tiles, RESCORING), lists)](
            inputs, work.state, scores, plan.k, tiles,
            layout, plan.capacity, config.rows, config.stages, num_warps=config.warps,
            launch_pdl=has_pdl(codes.device),
        )  # fmt: skip
        slots, nan = finish(scores, None, plan, work, ranked)
    return slots.view(rows, groups, count, -1), nan.view(rows, groups, count)


@triton.jit
def _place(inputs, index):
    """Where a list stands: batch, group, query, and the slots that it sees."""
    _, start, stop, length, groups, count = inputs
    query, group, batch = index % count, index // count % groups, index // count // groups
    first, end = seen(start, stop, batch, query, length)
    return batch, group, query, first, end


@triton.jit
def _sample(inputs, sampled, LAYOUT: tl.constexpr, SAMPLE: tl.constexpr, ROWS: tl.constexpr):
    if not LAYOUT.made_ready:
        wait_then_launch()
    index, length = tl.program_id(1), inputs[3]
    batch, group, query, first, end = _place(inputs, index)
    nth = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = stretch(nth, length // LAYOUT.sharing, SAMPLE // LAYOUT.sharing)
    codes = codes_of(inputs[0], batch, group, row, length, LAYOUT)
    if LAYOUT.made_ready:  # its codes are on their way while queries are made ready
        wait_then_launch()
    prepared = prepare(inputs[0], batch, group, query, LAYOUT)
    scores = scores_of(inputs[0], codes, prepared, batch, group, row, length, LAYOUT)
    slot = slots_of(row, LAYOUT)
    scores = tl.where((slot >= first) & (slot < end), scores, float("-inf"))
    tl.store(sampled + index.to(tl.int64) * SAMPLE + slots_of(nth, LAYOUT), scores)


# Tiles change with the length; a kernel for each would be compiled amid decoding.
@triton.jit(do_not_specialize=["tiles"])
def _filter(
    inputs, state, candidates, tiles,
    LAYOUT: tl.constexpr, CAPACITY: tl.constexpr, ROWS: tl.constexpr, EACH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    # Neighbours in the grid work on different lists: one list's counter is added to one by one.
    index = tl.program_id(0)
    batch, group, query, first, end = _place(inputs, index)
    prepared = prepare(inputs[0], batch, group, query, LAYOUT)
    begin = tl.program_id(1) * tiles
    beyond = tl.minimum(begin + tiles, tl.cdiv(end, LAYOUT.sharing * ROWS))
    floor = tl.full([], float("inf"), tl.float32)
    for tile in tl.range(begin, beyond, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        scores = score_rows(inputs[0], prepared, batch, group, row, inputs[3], LAYOUT)
        slot = slots_of(row, LAYOUT)
        scores = tl.where((slot >= first) & (slot < end), scores, float("-inf"))
        if tile == begin:  # the threshold is not known yet while the first codes are on their way
            wait_then_launch()
            floor = floor_of(state, index)
        collect(scores, slot, floor, index, state, candidates, CAPACITY, EACH)
    if begin >= beyond:
        wait_then_launch()


@triton.jit
def _rescore(
    inputs, state, scores, k, tiles,
    LAYOUT: tl.constexpr, CAPACITY: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    launch_then_wait()
    index = tl.program_id(1)
    if not settled(state + index.to(tl.int64) * STATE, k, CAPACITY):
        batch, group, query, first, end = _place(inputs, index)
        prepared = prepare(inputs[0], batch, group, query, LAYOUT)
        scores += index.to(tl.int64) * inputs[3]
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
            row = tile * ROWS + tl.arange(0, ROWS)
            x = score_rows(inputs[0], prepared, batch, group, row, inputs[3], LAYOUT)
            slot = slots_of(row, LAYOUT)
            x = tl.where((slot >= first) & (slot < end), x, float("-inf"))
            tl.store(scores + slot, x, mask=slot < inputs[3])
