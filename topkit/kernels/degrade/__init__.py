"""Exact lists with a known share of their keys lost, and others in the places of these."""

# pyright: strict

from __future__ import annotations

from torch import Tensor

from topkit.kernels.backend import resolve
from topkit.kernels.degrade import reference
from topkit.kernels.degrade.loss import MISSES, Loss
from topkit.kernels.select_topk import LONGEST, too_many

__all__ = ["MISSES", "Loss", "degrade"]


def degrade(
    slots: Tensor,
    order: Tensor | None,
    most: Tensor | None,
    floor: Tensor | None,
    *,
    loss: Loss,
    stop: Tensor,
    start: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Lists [B, H, Tq, k], best first, without what is lost of them, and with others behind, -1 last.

    Shapes: order [B or 1, H, Tq, T] float32, the greatest takes a lost one's place first (None: nothing does),
    of the slots alone of which `most` [B, H, Tq, T] is above -inf and below `floor` [B, H, Tq, 1];
    stop [B or 1, Tq] at most T, start [B]. A row that sees no more than k slots loses none.
    """
    own = too_many(slots.shape[-1])
    if own is None and most is not None and most.shape[-1] > LONGEST:
        own = f"there must be at most {LONGEST} slots; got {most.shape[-1]}"
    if resolve("torch" if backend == "torch" else "auto", slots, own) == "torch":
        return reference.degrade(slots, order, most, floor, loss, stop, start, backend)
    from topkit.kernels.degrade import triton_impl

    return triton_impl.degrade(slots, order, most, floor, loss, stop, start)
