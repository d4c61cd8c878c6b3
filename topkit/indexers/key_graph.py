# pyright: strict, reportUnknownMemberType=false
"""A graph of keys that the same queries look for, and a search through it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.scored import masked
from topkit.kernels.gather_attention import gather_scores
from topkit.kernels.score import score
from topkit.kernels.select_topk import select_topk

# Floats of scores that are made at a time.
PIECE = 1 << 25
# Of a beam, the part that is expanded at once; and how often, at most.
_PART, _ROUNDS = 8, 32


def linked(queries: Tensor, keys: Tensor, nearest: int, degree: int, step: Step) -> Tensor:
    """The neighbours of each key [B, Hk, T, degree] int32, -1 for none: keys that the same queries list.

    Each query of the group's [B, Hq, n, D] lists its `nearest` keys. Listed keys are linked to the best of
    their list and to the next one, both ways; of more links than there is room for, those that most queries
    made stay, then the lowest slots. The first two are the keys before and behind, so that each is reached.
    """
    rows, groups, length, _ = keys.shape
    lists = _lists(queries, keys, nearest, step)
    best = lists[..., :1].expand(-1, -1, lists.shape[-1] - 1)
    one = torch.cat([best, lists[..., 1:-1]], -1).flatten(1)
    other = torch.cat([lists[..., 1:], lists[..., 2:]], -1).flatten(1)
    node = torch.arange(rows * groups, device=keys.device)[:, None] * length
    real = (one >= 0) & (other >= 0) & (one != other)
    ways = [((node + a) * length + b)[real] for a, b in ((one, other), (other, one))]
    unique = cast(Any, torch.cat(ways).unique)
    links, times = cast(tuple[Tensor, Tensor], unique(return_counts=True))
    # By node, then most queries first, then the lowest slot.
    most = times.max() if len(times) else 0
    links = links[(links // length * (most + 1) + most - times).argsort(stable=True)]
    owner = links // length
    place = torch.arange(len(links), device=keys.device) - torch.searchsorted(owner, owner)
    room = place < degree - 2
    table = torch.full((rows * groups * length, degree), -1, dtype=torch.int32, device=keys.device)
    table[owner[room], place[room] + 2] = (links % length)[room].int()
    table = table.view(rows, groups, length, degree)
    slots = torch.arange(length, device=keys.device)
    start = step.starts(keys.device)[:, None, None]
    table[..., 0] = (slots - 1).where(slots > start, -1)
    table[..., 1] = (slots + 1).where((slots >= start) & (slots < length - 1), -1)
    return table


def _lists(queries: Tensor, keys: Tensor, nearest: int, step: Step) -> Tensor:
    """The best keys of each query [B * Hk, G * n, nearest or fewer], best first, -1 last."""
    count, length = queries.shape[2], keys.shape[2]
    stops = step.stops(length, count, keys.device)
    width = max(1, PIECE // (queries.shape[0] * queries.shape[1] * length))
    parts: list[Tensor] = []
    for first in range(0, count, width):
        some = slice(first, first + width)
        scores = masked(score(queries[:, :, some], keys), replace(step, stop=stops[:, some]))
        parts.append(select_topk(scores, nearest, backend="torch"))
    lists = torch.cat(parts, 2)
    return lists.reshape(len(lists) * keys.shape[1], -1, lists.shape[-1])


@dataclass
class Search:
    """A beam of the best keys that a walk has met, for each of the queries [B, Hq, Tq, D].

    Shapes: keys [B, Hk, T, D]; table [B, Hk, T, degree], its neighbours; visible [B or 1, 1, Tq, T] or None.
    """

    queries: Tensor
    keys: Tensor
    table: Tensor
    visible: Tensor | None
    width: int

    def run(self, entries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best slots [B, Hq, Tq, width], -1 for none, their scores, and how many keys were met, and passed.

        The walk begins at entries [B, Hk, e], -1 for none, and ends once it has expanded all that its beam holds.
        """
        heads, count, length = *self.queries.shape[1:3], self.keys.shape[2]
        each = entries.repeat_interleave(heads // entries.shape[1], 1)[:, :, None]
        new = each.expand(-1, -1, count, -1)
        self.met = torch.zeros(
            len(new), heads, count, length + 1, dtype=torch.bool, device=new.device
        )
        slots, scores = self._fresh(new)
        slots, scores, done = self._best(slots, scores, torch.zeros_like(slots, dtype=torch.bool))
        part = max(1, -(-self.width // _PART))
        passed = torch.zeros_like(slots[..., 0])
        for _ in range(_ROUNDS):
            ahead = scores.masked_fill(done | (slots < 0), -torch.inf)
            top, places = ahead.topk(min(part, ahead.shape[-1]), dim=-1)
            if top.device.type == "cpu" and bool((top == -torch.inf).all()):
                break
            done = done.scatter(-1, places, True)
            passed = passed + (top > -torch.inf).sum(-1)
            at = slots.gather(-1, places).masked_fill(top == -torch.inf, -1)
            more, theirs = self._fresh(self._neighbours(at))
            unseen = torch.zeros_like(more, dtype=torch.bool)
            slots, scores, done = self._best(
                torch.cat([slots, more], -1),
                torch.cat([scores, theirs], -1),
                torch.cat([done, unseen], -1),
            )
        return slots, scores, self.met[..., :-1].sum(-1), passed

    def _neighbours(self, at: Tensor) -> Tensor:
        """The neighbours [B, Hq, Tq, n * degree] of slots [B, Hq, Tq, n], -1 for none."""
        rows, heads, count, number = at.shape
        groups, degree = self.table.shape[1], self.table.shape[3]
        flat = at.clamp_min(0).view(rows, groups, -1, 1).expand(-1, -1, -1, degree)
        neighbours = self.table.gather(2, flat).view(rows, heads, count, number, degree).long()
        return neighbours.masked_fill(at[..., None] < 0, -1).flatten(-2)

    def _fresh(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The visible slots that the walk has not met, ascending, each once, -1 for the others; and their scores."""
        length = self.keys.shape[2]
        slots = slots.sort(-1).values
        out = self.met.gather(-1, slots.clamp_min(0))
        out[..., 1:] |= slots[..., 1:] == slots[..., :-1]
        if self.visible is not None:
            visible = self.visible.expand(*slots.shape[:3], -1)
            out |= ~visible.gather(-1, slots.clamp_min(0))
        slots = slots.masked_fill(out, -1)
        self.met.scatter_(-1, slots.where(slots >= 0, length), True)
        return slots, gather_scores(self.queries, self.keys, slots, backend="torch")

    def _best(self, slots: Tensor, scores: Tensor, done: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The `width` best of these, equal ones by the lowest slot."""
        slots, order = slots.sort(-1)
        scores, done = scores.gather(-1, order), done.gather(-1, order)
        places = select_topk(scores, self.width, backend="torch")
        at, none = places.clamp_min(0), places < 0
        slots = slots.gather(-1, at).masked_fill(none, -1)
        return slots, scores.gather(-1, at).masked_fill(none, -torch.inf), done.gather(-1, at)
