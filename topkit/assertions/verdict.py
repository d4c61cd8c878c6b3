# pyright: strict
"""Which rows of a selection are wrong, and how badly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from topkit.assertions.demand import Demand
from topkit.assertions.exact import NEVER, Exact, Rows
from topkit.assertions.facts import facts
from topkit.fidelity.ties import floors, hits
from topkit.kernels.rounding import TOLERANCE

# A score so far below another has no weight beside it, in float32.
WEIGHTLESS = 104.0


def require(indices: Tensor, exact: Exact, demand: Demand) -> None:
    """Go through all blocks and fail with the worst row of all. Shapes: indices [rows, w]."""
    at, failing = 0, 0
    worst: tuple[float, int, Rows] | None = None
    for rows in exact.blocks:
        picked = indices[at : at + len(rows)].to(rows.scores.device)
        faults = _faults(picked, rows, exact.weights, demand)
        failing += int((faults > 0).sum())
        row = int(faults.argmax())
        if faults[row] > (0.0 if worst is None else worst[0]):
            worst = (float(faults[row]), at + row, rows.row(row))
        at += len(rows)
    if worst is not None:
        place = tuple(int(i) for i in np.unravel_index(worst[1], exact.shape))
        listed = indices[worst[1]].to(worst[2].scores.device)
        lines = facts(listed, worst[2], exact.weights, demand)
        raise AssertionError(
            f"{demand} was asked of every row; {failing} of {len(indices)} fail, "
            f"the worst is row {place}:\n  " + "\n  ".join(lines)
        )


def _faults(
    indices: Tensor, rows: Rows, weights: Callable[[Tensor], Tensor], demand: Demand
) -> Tensor:
    """How wrong each row is [n]: 0 right, below 1 a poor choice, else so many broken slots."""
    scores, length = rows.scores, rows.scores.shape[-1]
    wanted = (scores > NEVER).sum(-1).clamp_max(min(demand.k, length))
    inside = (indices >= 0) & (indices < length)
    place = indices.clamp(0, length - 1)
    chosen = scores.gather(-1, place).masked_fill(~inside, NEVER)
    ordered = indices.masked_fill(~inside, -1).sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    broken = ((indices != -1) & ~(chosen > NEVER)).sum(-1) + twice.sum(-1)
    beyond = (indices != -1).sum(-1) - wanted
    broken += (beyond.abs() if demand.exactly else beyond.clamp_min(0)) + scores.isnan().sum(-1)

    poor = torch.zeros_like(wanted, dtype=torch.float64)
    if demand.exactly:
        poor = _inverted(torch.where(inside, indices, length), rows)
    if demand.recall is not None:
        recall = _recall(chosen, rows.doubt.gather(-1, place), rows, wanted)
        poor = poor.maximum((1 - recall).masked_fill(recall >= demand.recall, 0))
    if demand.mass is not None:
        mass = weights(scores).gather(-1, place).masked_fill(~inside, 0)
        mass = mass.double().sum(-1)
        poor = poor.maximum((1 - mass).masked_fill(mass >= demand.mass - TOLERANCE, 0))
    return broken + poor.masked_fill(wanted == 0, 0).nan_to_num(0.5).clamp(0, 0.999)


def _inverted(places: Tensor, rows: Rows) -> Tensor:
    """How far the best slot left out is above the worst one chosen, as a share of both [n]; 0 where it is not.

    Shapes: places [n, w], T for none.
    """
    scores, doubt = rows.scores, rows.doubt
    picked = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    picked = picked.scatter(-1, places, True)[:, :-1]
    left = (scores - doubt).masked_fill(picked, NEVER).amax(-1).double()
    seen = picked & (scores > NEVER)
    worst = (scores + doubt).masked_fill(~seen, float("inf")).amin(-1).double()
    share = (left - worst) / (left.abs() + worst.abs()).clamp_min(1e-300)
    return share.nan_to_num(0.5).masked_fill(~(left > worst), 0)


def _recall(chosen: Tensor, off: Tensor, rows: Rows, wanted: Tensor) -> Tensor:
    """The share of the best `wanted` that was chosen [n]: what reaches the last of them, capped.

    Where every slot reaches it, and it weighs nothing, it is a mask of finite numbers, and any choice
    would do: what is above it is then due itself.
    Shapes: chosen, off [n, w], scores and what they may be off by.
    """
    scores, doubt, k = rows.scores, rows.doubt, int(wanted.max().clamp_min(1))
    floor, nth = floors(scores, doubt, k), (wanted - 1).clamp_min(0)[:, None]
    least = floor.gather(-1, nth)
    credit = hits(chosen, off, floor, wanted)
    last = scores.topk(k, dim=-1).values.gather(-1, nth)
    above = chosen - off > last
    due = wanted - (scores - doubt > last).sum(-1)
    strictly = above.sum(-1) + ((chosen > NEVER) & ~above).sum(-1).minimum(due)
    top = scores.masked_fill(scores == float("inf"), NEVER).amax(-1)
    masked = ((scores + doubt >= least) | (scores == NEVER)).all(-1)
    masked &= top - last[:, 0] > WEIGHTLESS
    return torch.where(masked, strictly, credit).minimum(wanted).double() / wanted
