# pyright: strict
"""Which rows of several selections are not the same set, and whether ties alone are behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.assertions.audit import Change
from topkit.assertions.demand import Demand
from topkit.assertions.exact import NEVER, Rows
from topkit.assertions.problem import Problem
from topkit.assertions.quality import tied

# Slots and their scores, None where these are not known.
Scored = list[tuple[int, float | None]]


@dataclass(frozen=True)
class Differences:
    """Of rows, how many have ties (None: not known), and what changed.

    first: the number of the first row that changed, if there is one by more than ties; before, after: the slots that
    only one of the two selections has there.
    """

    rows: int
    ties: int | None
    change: Change
    first: int | None
    before: Scored
    after: Scored


def compare(
    before: Tensor, others: Sequence[Tensor], problem: Problem | None, demand: Demand, block: int
) -> Differences:
    """Each of the others beside what was chosen before.

    Shapes: before [..., w]; others [..., any width]; problem, the scores of the same rows.
    """
    widths = [x.shape[-1] for x in (before, *others)]
    stacked = torch.cat([x.long().to(before.device) for x in (before, *others)], -1)
    rows = ties = changes = excuses = 0
    first: tuple[bool, int, Scored, Scored] | None = None
    for slots, known in _blocks(stacked, problem, demand, block):
        own, *again = (_ordered(x, max(widths)) for x in torch.split(slots, widths, -1))
        differ = [(own != other).any(-1) for other in again]
        excused = [_tied_alone(own, other, known) for other in again]
        nothing = torch.zeros(len(own), dtype=torch.bool, device=own.device)
        changed = torch.stack([nothing, *differ]).any(0)
        worse = [a & ~b for a, b in zip(differ, excused, strict=True)]
        unexplained = torch.stack([nothing, *worse]).any(0)
        for which, hard in ((unexplained, True), (changed, False)):
            if bool(which.any()) and (first is None or hard > first[0]):
                row = int(which.nonzero()[0])
                at = next(n for n, x in enumerate(worse if hard else differ) if bool(x[row]))
                first = (hard, rows + row, *_apart(own[row], again[at][row], known, row))
        rows, changes = rows + len(own), changes + int(changed.sum())
        excuses += int((changed & ~unexplained).sum())
        ties += 0 if known is None else int(tied(known, demand.k).sum())
    change = Change(changes, excuses)
    place, left, right = (None, [], []) if first is None else first[1:]
    return Differences(rows, None if problem is None else ties, change, place, left, right)


def _blocks(
    stacked: Tensor, problem: Problem | None, demand: Demand, block: int
) -> Iterator[tuple[Tensor, Rows | None]]:
    """What is listed, and its scores, so many rows at a time."""
    if problem is None:
        yield stacked.flatten(0, -2), None
        return
    for part in problem.parts(stacked, demand, block):
        at = 0
        for rows in part.exact.blocks:
            own = part.listed.rows(slice(at, at + len(rows)), rows.scores.device)
            yield own.slots, rows
            at += len(rows)


def _ordered(slots: Tensor, width: int) -> Tensor:
    """Sets of slots in one order and width."""
    filled = torch.nn.functional.pad(slots, (0, width - slots.shape[-1]), value=-1)
    return filled.sort(-1).values


def _tied_alone(own: Tensor, other: Tensor, rows: Rows | None) -> Tensor:
    """Whether what only one of two sets has is as much as the other's, and all of it has one score [n]."""
    if rows is None:
        return torch.zeros(len(own), dtype=torch.bool, device=own.device)
    a, b = _picked(own, rows), _picked(other, rows)
    apart = a ^ b
    most = (rows.scores - rows.doubt).masked_fill(~apart, NEVER).amax(-1)
    least = (rows.scores + rows.doubt).masked_fill(~apart, -NEVER).amin(-1)
    whole = (a.sum(-1) == (own != -1).sum(-1)) & (b.sum(-1) == (other != -1).sum(-1))
    return whole & (a.sum(-1) == b.sum(-1)) & (most <= least) & (least > NEVER)


def _picked(slots: Tensor, rows: Rows) -> Tensor:
    """Which slots a set has [n, T]."""
    count, length = rows.scores.shape
    outside = (slots < 0) | (slots >= length)
    picked = torch.zeros(count, length + 1, dtype=torch.bool, device=slots.device)
    return picked.scatter(-1, slots.masked_fill(outside, length), True)[:, :-1]


def _apart(own: Tensor, other: Tensor, rows: Rows | None, row: int) -> tuple[Scored, Scored]:
    """What only one of two sets has."""
    a, b = set(map(int, own)), set(map(int, other))

    def scored(slots: set[int]) -> Scored:
        known = None if rows is None else rows.scores[row]
        return [
            (slot, float(known[slot]) if known is not None and 0 <= slot < len(known) else None)
            for slot in sorted(slots - {-1})
        ]

    return scored(a - b), scored(b - a)
