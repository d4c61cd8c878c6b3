"""The fewest best scores that hold a share of their softmax, in torch."""

from __future__ import annotations

from torch import Tensor

from topkit.kernels.select_topk import select_topk


def select_mass(scores: Tensor, k: int, mass: float, scaling: float, check: bool = True) -> Tensor:
    """As topkit.kernels.select_mass.select_mass."""
    slots = select_topk(scores, k, check=check, backend="torch")
    weights = (scaling * scores).softmax(-1).gather(-1, slots.clamp_min(0))
    # A key stays if those before it fall short of the mass; the best one always stays.
    enough = weights.cumsum(-1) - weights >= mass
    enough[..., :1] = False
    return slots.masked_fill(enough, -1)
