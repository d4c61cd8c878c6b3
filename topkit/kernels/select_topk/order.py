"""The order in which chosen slots are handed over."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = ("score", "slot", None)
_LAST = torch.iinfo(torch.int64).max


def by_slot(slots: Tensor) -> Tensor:
    """Slots [..., k] ascending, -1 last."""
    slots = slots.masked_fill(slots < 0, _LAST).sort(-1).values
    return slots.masked_fill(slots == _LAST, -1)


def by_score(slots: Tensor, scores: Tensor) -> Tensor:
    """Slots [..., k] by their float32 scores [..., k], best first, equal ones by slot; -1 last.

    One sort of integers, the score above the slot, so that no luck is left.
    """
    bits = (scores + 0.0).view(torch.int32)  # both zeros are one
    rank = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    keys = ((rank.long() << 32) | slots).masked_fill(slots < 0, _LAST).sort(-1).values
    return (keys & 0xFFFFFFFF).masked_fill(keys == _LAST, -1)
