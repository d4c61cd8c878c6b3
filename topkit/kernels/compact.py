# pyright: strict
"""Lists of slots with gaps, made dense."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def compact(slots: Tensor, width: int) -> Tensor:
    """The slots [..., n] in their order, -1 moved last, cut or filled with -1 to [..., width]."""
    order = (slots < 0).sort(dim=-1, stable=True).indices[..., :width]
    return pad(slots.gather(-1, order), (0, width - order.shape[-1]), value=-1)
