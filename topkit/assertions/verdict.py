# pyright: strict
"""Which rows of a selection are wrong, and how badly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topkit.assertions.demand import Demand
from topkit.assertions.exact import NEVER, Exact, Rows
from topkit.assertions.facts import facts
from topkit.assertions.hints import hints
from topkit.assertions.listed import Listed
from topkit.assertions.quality import Quality, quality
from topkit.assertions.summary import Summary
from topkit.kernels.rounding import TOLERANCE


@dataclass(frozen=True)
class Part:
    """Rows that are judged together: what a kernel lists, the exact scores, and where each row is.

    place: the indices of row n by name, of which the first `dims` are those of what the kernel lists.
    """

    listed: Listed
    exact: Exact
    place: Callable[[int], dict[str, int]]
    dims: int


@dataclass(frozen=True)
class _Worst:
    fault: float
    listed: Listed
    rows: Rows
    weights: Callable[[Tensor], Tensor]
    place: dict[str, int]
    dims: int


def require(parts: Iterable[Part], demand: Demand) -> Summary:
    """Go through all rows and fail with the worst of all; else the summary of them."""
    figures: list[Quality] = []
    places: list[tuple[int, Callable[[int], dict[str, int]]]] = []
    worst: _Worst | None = None
    failing = 0
    for part in parts:
        places.append((len(part.listed), part.place))
        for at, listed, rows in _blocks(part):
            faults, figure = _judged(listed, rows, part.exact.weights, demand)
            figures.append(figure)
            failing += int((faults > 0).sum())
            row = int(faults.argmax())
            if faults[row] > (0.0 if worst is None else worst.fault):
                own = listed.rows(slice(row, row + 1), faults.device)
                worst = _Worst(
                    float(faults[row]), own, rows.row(row), part.exact.weights,
                    part.place(at + row), part.dims,
                )  # fmt: skip
    summary = Summary.of(Quality.joined(figures), demand.k, lambda row: _place(row, places))
    if worst is None:
        return summary
    raise AssertionError(_words(replace(summary, worst=worst.place), failing, worst, demand))


def _blocks(part: Part) -> Iterator[tuple[int, Listed, Rows]]:
    """Rows that are in memory at a time, and the number of the first."""
    at = 0
    for rows in part.exact.blocks:
        own, device = slice(at, at + len(rows)), rows.scores.device
        yield at, part.listed.rows(own, device), rows
        at += len(rows)


def _place(row: int, places: list[tuple[int, Callable[[int], dict[str, int]]]]) -> dict[str, int]:
    """Where a row of all is."""
    for count, place in places:
        if row < count:
            return place(row)
        row -= count
    raise IndexError(row)


def _words(summary: Summary, failing: int, worst: _Worst, demand: Demand) -> str:
    """What is wrong, line by line."""
    named = ", ".join(f"{name} {number}" for name, number in worst.place.items())
    shown = tuple(worst.place.values())[: worst.dims]
    lines = [
        *facts(worst.listed, worst.rows, worst.weights, demand),
        *(f"hint: {hint}" for hint in hints(worst.listed, worst.rows, worst.weights, demand)),
        f"over all rows: {summary.figures()}",
    ]
    return (
        f"{demand} was asked of every row; {failing} of {summary.rows} fail, "
        f"the worst is row {shown}{f': {named}' if named else ''}\n  " + "\n  ".join(lines)
    )


def _judged(
    listed: Listed, rows: Rows, weights: Callable[[Tensor], Tensor], demand: Demand
) -> tuple[Tensor, Quality]:
    """How wrong each row is [n], 0 right, below 1 a poor choice, else so many broken slots; and its figures."""
    scores, length = rows.scores, rows.scores.shape[-1]
    indices = listed.slots
    wanted = (scores > NEVER).sum(-1).clamp_max(min(demand.k, length))
    inside = (indices >= 0) & (indices < length)
    chosen = scores.gather(-1, indices.clamp(0, length - 1)).masked_fill(~inside, NEVER)
    own = indices.masked_fill(~inside, -1).sort(-1).values
    twice = torch.zeros_like(inside)
    twice[:, 1:] = (own[:, 1:] == own[:, :-1]) & (own[:, 1:] >= 0)
    broken = ((indices != -1) & ~(chosen > NEVER)).sum(-1) + twice.sum(-1)
    beyond = (indices != -1).sum(-1) - wanted
    broken += (beyond.abs() if demand.exactly else beyond.clamp_min(0)) + scores.isnan().sum(-1)

    own = own.masked_fill(twice, -1)
    figures = quality(own, rows, wanted, weights)
    poor = torch.zeros_like(figures.recall)
    if demand.exactly or demand.mass_ratio is not None:
        poor = _inverted(own, rows)
    if demand.mass_ratio is not None:
        # The Top-k by score is right, though rounding may make two of its scores differ.
        perfect = (poor == 0) & ((own >= 0).sum(-1) == wanted)
        poor = _below(figures.mass_ratio, demand.mass_ratio - TOLERANCE).masked_fill(perfect, 0)
    if demand.recall is not None:
        poor = poor.maximum(_below(figures.recall, demand.recall))
    if demand.mass is not None:
        poor = poor.maximum(_below(figures.mass, demand.mass - TOLERANCE))
    return broken + poor.masked_fill(wanted == 0, 0).nan_to_num(0.5).clamp(0, 0.999), figures


def _below(share: Tensor, least: float) -> Tensor:
    """How far a share is from 1 where it does not reach the least."""
    return (1 - share).masked_fill(share >= least, 0)


def _inverted(own: Tensor, rows: Rows) -> Tensor:
    """How far the best slot left out is above the worst one chosen, as a share of both [n]; 0 where it is not.

    Shapes: own [n, w], -1 for none.
    """
    scores, doubt = rows.scores, rows.doubt
    length = scores.shape[1]
    picked = torch.zeros(len(scores), length + 1, dtype=torch.bool, device=scores.device)
    picked = picked.scatter(-1, own.masked_fill(own < 0, length), True)[:, :-1]
    left = (scores - doubt).masked_fill(picked, NEVER).amax(-1).double()
    seen = picked & (scores > NEVER)
    worst = (scores + doubt).masked_fill(~seen, float("inf")).amin(-1).double()
    share = (left - worst) / (left.abs() + worst.abs()).clamp_min(1e-300)
    return share.nan_to_num(0.5).masked_fill(~(left > worst), 0)
