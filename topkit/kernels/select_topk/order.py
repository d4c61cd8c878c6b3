"""The order in which chosen slots are handed over."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = ("score", "slot", None)
# Stands, among what is ranked, where no slot was chosen.
LAST = torch.iinfo(torch.int64).max


def by_slot(slots: Tensor) -> Tensor:
    """Slots [..., k] ascending, -1 last."""
    slots = slots.masked_fill(slots < 0, LAST).sort(-1).values
    return slots.masked_fill(slots == LAST, -1)


def by_rank(ranked: Tensor) -> Tensor:
    """Slots [..., k] of int64 that hold a slot below its rank: in their order, -1 last.

    One sort of integers, equal scores by slot, so that no luck is left.
    """
    ranked = ranked.sort(-1).values
    return (ranked & 0xFFFFFFFF).masked_fill(ranked == LAST, -1)
