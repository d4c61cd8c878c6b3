"""Which scores are one: as far as rounding may have moved either of the two."""

# pyright: strict
from __future__ import annotations

import math

from torch import Tensor

NEVER = -math.inf


def floors(scores: Tensor, rounding: Tensor, most: int | None = None) -> Tensor:
    """What the m best are sure to reach, for every m: the m-th largest score minus its rounding.

    One score that is known badly takes one place, and moves no other.
    Shapes: scores [..., n], -inf where there is none, rounding [..., n] -> [..., min(most, n)], sorted.
    """
    least = (scores - rounding).masked_fill(scores == NEVER, NEVER)
    return least.sort(-1, descending=True).values[..., :most]


def hits(scores: Tensor, rounding: Tensor, floors: Tensor, wanted: Tensor) -> Tensor:
    """How many of the best `wanted` were chosen: scores that reach their floor, but for their rounding.

    Never more than `wanted`. Shapes: chosen scores [..., w], -inf where none was chosen, rounding
    [..., w], floors [..., n], wanted [...] -> [...].
    """
    floor = floors.gather(-1, (wanted - 1).clamp(0, floors.shape[-1] - 1)[..., None])
    reached = (scores + rounding >= floor) & (scores > NEVER)
    return reached.sum(-1).minimum(wanted)
