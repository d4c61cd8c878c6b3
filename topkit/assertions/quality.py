# pyright: strict
"""How good the choice of each row is: recall, mass, mass ratio, and ties at the boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from topkit.assertions.exact import NEVER, Rows
from topkit.fidelity.ties import floors, hits

# A score so far below another has no weight beside it, in float32.
WEIGHTLESS = 104.0


@dataclass(frozen=True)
class Quality:
    """The figures of rows, each [n]; a row that is due nothing has 1 of all.

    recall: the share of the Top-k chosen, ties forgiven; mass: the attention weight of what was chosen;
    mass_ratio: of that, to the Top-k's own; tied: whether the k-th score and the next are one.
    """

    recall: Tensor
    mass: Tensor
    mass_ratio: Tensor
    tied: Tensor

    @classmethod
    def joined(cls, parts: list[Quality]) -> Quality:
        """Of all rows, where their parts may lie on several devices."""
        columns = [[getattr(part, one.name).cpu() for part in parts] for one in fields(cls)]
        return cls(*(torch.cat(column) for column in columns))


def quality(
    own: Tensor, rows: Rows, wanted: Tensor, weights: Callable[[Tensor], Tensor]
) -> Quality:
    """The figures of different slots, -1 for none.

    Shapes: own [n, w]; of rows, scores and doubt [n, T]; wanted [n], how many slots each row is due.
    """
    known = rows.scores.masked_fill(rows.scores.isnan(), NEVER)
    rows, place, none = Rows(known, rows.doubt), own.clamp_min(0), own < 0
    chosen = known.gather(-1, place).masked_fill(none, NEVER)
    due, best = wanted == 0, _best(rows, wanted)
    recall = _recall(chosen, rows.doubt.gather(-1, place), rows, wanted, best)
    heavy = weights(known)
    mass = heavy.gather(-1, place).double().masked_fill(~(chosen > NEVER), 0).sum(-1)
    most = heavy.gather(-1, best.slots).double().cumsum(-1)
    most = most.gather(-1, (wanted - 1).clamp_min(0)[:, None])[:, 0]
    ratio = (mass / most).masked_fill((most == 0) & (mass == 0), 1)
    return Quality(
        recall.masked_fill(due, 1), mass.masked_fill(due, 1), ratio.masked_fill(due, 1),
        _tied(rows, wanted, best),
    )  # fmt: skip


def tied(rows: Rows, k: int) -> Tensor:
    """Whether the best k may be chosen in several ways [n]."""
    known = Rows(rows.scores.masked_fill(rows.scores.isnan(), NEVER), rows.doubt)
    wanted = (known.scores > NEVER).sum(-1).clamp_max(k)
    return _tied(known, wanted, _best(known, wanted))


@dataclass(frozen=True)
class _Best:
    """The highest scores of rows and their slots, one more than any row is due [n, k + 1]."""

    scores: Tensor
    slots: Tensor


def _best(rows: Rows, wanted: Tensor) -> _Best:
    top = rows.scores.topk(min(int(wanted.max()) + 1, rows.scores.shape[-1]), -1)
    return _Best(top.values, top.indices)


def _tied(rows: Rows, wanted: Tensor, best: _Best) -> Tensor:
    """Whether any choice of the k-th slot is one of several, as far as scores are known [n]."""
    off = rows.doubt.gather(-1, best.slots)
    at = torch.stack([wanted - 1, wanted], -1).clamp(0, best.slots.shape[-1] - 1)
    (last, after), (here, there) = best.scores.gather(-1, at).T, off.gather(-1, at).T
    more = (rows.scores > NEVER).sum(-1) > wanted
    return more & (last - here <= after + there)


def _recall(chosen: Tensor, off: Tensor, rows: Rows, wanted: Tensor, best: _Best) -> Tensor:
    """The share of the best `wanted` that was chosen [n]: what reaches the last of them, capped.

    Where every slot reaches it, and it weighs nothing, it is a mask of finite numbers, and any choice
    would do: what is above it is then due itself.
    Shapes: chosen, off [n, w], scores and what they may be off by.
    """
    scores, doubt, k = rows.scores, rows.doubt, int(wanted.max().clamp_min(1))
    exact = not bool(doubt.any())
    floor = best.scores[:, :k] if exact else floors(scores, doubt, k)
    nth = (wanted - 1).clamp_min(0)[:, None]
    least = floor.gather(-1, nth)
    credit = hits(chosen, off, floor, wanted)
    last = best.scores.gather(-1, nth)
    above = chosen - off > last
    due = wanted - (scores - doubt > last).sum(-1)
    strictly = above.sum(-1) + ((chosen > NEVER) & ~above).sum(-1).minimum(due)
    top = scores.masked_fill(scores == float("inf"), NEVER).amax(-1)
    masked = ((scores + doubt >= least) | (scores == NEVER)).all(-1)
    masked &= top - last[:, 0] > WEIGHTLESS
    return torch.where(masked, strictly, credit).minimum(wanted).double() / wanted
