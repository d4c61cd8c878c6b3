# pyright: strict
"""What a kernel lists, and the slots that this means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# An entry that is no slot of its row, whatever number stands there.
NOWHERE = -2


@dataclass(frozen=True)
class Listed:
    """Slots of rows, -1 for none, and the numbers that stand there: physical ones under a block table.

    Shapes: slots, said [n, w].
    """

    slots: Tensor
    said: Tensor
    page_size: int | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def rows(self, own: slice, device: torch.device) -> Listed:
        """Some rows, where their scores lie."""
        return replace(self, slots=self.slots[own].to(device), said=self.said[own].to(device))
