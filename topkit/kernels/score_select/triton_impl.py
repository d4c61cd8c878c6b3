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

from topkit.kernels.pdl import EARLY, after_others, beside_others
from topkit.kernels.score.layout import Config, Form, Source
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
    form: Form,
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
    config = config or CONFIGS[form.dtype]
    rows, groups, length = codes.shape[:3]
    lists, plan = rows * groups * count, Plan(length, min(k, length), 32, 1 << 15)
    if plan.direct:
        scores = score_codes(source, form, start, stop, config)
        slots, nan = select_topk(scores.flatten(0, 2), k, None, ranked)
    else:
        told = source.packed(), *window(start, stop), length, groups, count
        work = Work.of(lists, plan, codes.device)
        sampled = torch.empty(lists, plan.sample, dtype=torch.float32, device=codes.device)
        _sample[(plan.sample // (config.rows * form.sharing), lists)](
            told,
            sampled,
            form,
            plan.sample,
            config.rows,
            num_warps=config.warps,
            launch_pdl=EARLY.value,
        )
        threshold(sampled, None, plan, work, spread=False)
        tiles = triton.cdiv(triton.cdiv(length, form.sharing), config.rows)
        _filter[(lists, triton.cdiv(tiles, config.tiles))](
            told, work.state, work.found, config.tiles, form, plan.capacity, config.rows,
            config.rows * form.sharing // (32 * config.warps) if form.apart else 0,
            config.stages, num_warps=config.warps, launch_pdl=EARLY.value,
        )  # fmt: skip
        # Written for a list whose candidates do not hold the answer, and for no other.
        scores = torch.empty(lists, length, dtype=torch.float32, device=codes.device)
        _rescore[(min(tiles, RESCORING), lists)](
            told, work.state, scores, plan.k, tiles,
            form, plan.capacity, config.rows, config.stages, num_warps=config.warps,
            launch_pdl=EARLY.value,
        )  # fmt: skip
        slots, nan = finish(scores, None, plan, work, ranked)
    return slots.view(rows, groups, count, -1), nan.view(rows, groups, count)


@triton.jit
def _place(told, index):
    """Where a list stands: batch, group, query, and the slots that it sees."""
    _, start, stop, length, groups, count = told
    query, group, batch = index % count, index // count % groups, index // count // groups
    first, end = seen(start, stop, batch, query, length)
    return batch, group, query, first, end


@triton.jit
def _sample(told, sampled, FORM: tl.constexpr, SAMPLE: tl.constexpr, ROWS: tl.constexpr):
    if FORM.dtype == "lightning":
        after_others()
    index, length = tl.program_id(1), told[3]
    batch, group, query, first, end = _place(told, index)
    nth = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = stretch(nth, length // FORM.sharing, SAMPLE // FORM.sharing)
    codes = codes_of(told[0], batch, group, row, length, FORM)
    if FORM.dtype != "lightning":  # its codes are on their way while queries are made ready
        after_others()
    prepared = prepare(told[0], batch, group, query, FORM)
    scores = scores_of(told[0], codes, prepared, batch, group, row, length, FORM)
    slot = slots_of(row, FORM)
    scores = tl.where((slot >= first) & (slot < end), scores, float("-inf"))
    tl.store(sampled + index.to(tl.int64) * SAMPLE + slots_of(nth, FORM), scores)


@triton.jit
def _filter(
    told, state, found, tiles,
    FORM: tl.constexpr, CAPACITY: tl.constexpr, ROWS: tl.constexpr, EACH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    # Neighbours in the grid work on different lists: one list's counter is added to one by one.
    index = tl.program_id(0)
    batch, group, query, first, end = _place(told, index)
    prepared = prepare(told[0], batch, group, query, FORM)
    begin = tl.program_id(1) * tiles
    beyond = tl.minimum(begin + tiles, tl.cdiv(end, FORM.sharing * ROWS))
    floor = tl.full([], float("inf"), tl.float32)
    for tile in tl.range(begin, beyond, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        scores = score_rows(told[0], prepared, batch, group, row, told[3], FORM)
        slot = slots_of(row, FORM)
        scores = tl.where((slot >= first) & (slot < end), scores, float("-inf"))
        if tile == begin:  # the threshold is still sought while the first codes are on their way
            after_others()
            floor = floor_of(state, index)
        collect(scores, slot, floor, index, state, found, CAPACITY, EACH)
    if begin >= beyond:
        after_others()


@triton.jit
def _rescore(
    told, state, scores, k, tiles,
    FORM: tl.constexpr, CAPACITY: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    beside_others()
    index = tl.program_id(1)
    if not settled(state + index.to(tl.int64) * STATE, k, CAPACITY):
        batch, group, query, first, end = _place(told, index)
        prepared = prepare(told[0], batch, group, query, FORM)
        scores += index.to(tl.int64) * told[3]
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
            row = tile * ROWS + tl.arange(0, ROWS)
            x = score_rows(told[0], prepared, batch, group, row, told[3], FORM)
            slot = slots_of(row, FORM)
            x = tl.where((slot >= first) & (slot < end), x, float("-inf"))
            tl.store(scores + slot, x, mask=slot < told[3])
