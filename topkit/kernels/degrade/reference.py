"""Lists with a share of their keys lost, in torch."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.kernels.compact import compact
from topkit.kernels.counter_noise import counter_noise
from topkit.kernels.degrade.loss import Loss
from topkit.kernels.select_topk import select_topk


def degrade(
    slots: Tensor,
    order: Tensor | None,
    most: Tensor | None,
    floor: Tensor | None,
    loss: Loss,
    stop: Tensor,
    start: Tensor | None,
    backend: str,
) -> Tensor:
    """As topkit.kernels.degrade.degrade."""
    width = slots.shape[-1]
    seen = stop if start is None else stop - start[:, None]
    # A row that shows no more than k keys keeps them all.
    spare = seen[:, None, :, None] > width
    lost = _lost(slots, loss, stop, start, backend) & spare
    kept = slots.masked_fill(lost, -1)
    if order is None or most is None or floor is None:
        return compact(kept, width)
    may = (most > -float("inf")) & (most < floor)
    among = order.where(may, -torch.inf)
    fillers = select_topk(among, loss.most(width), check=not among.is_cuda, backend=backend)
    place = torch.arange(fillers.shape[-1], device=slots.device)
    fillers = fillers.masked_fill(place >= lost.sum(-1, keepdim=True), -1)
    return compact(torch.cat([kept, fillers], -1), width)


def _lost(slots: Tensor, loss: Loss, stop: Tensor, start: Tensor | None, backend: str) -> Tensor:
    """Which of the exact slots [B, H, Tq, k], best first, are lost."""
    if loss.further:
        return _draws(slots, loss, loss.keys, stop, start, loss.together, backend) < loss.chance
    rank = torch.arange(slots.shape[-1], device=slots.device).expand_as(slots)
    worst = _worst_first(slots, rank, loss, stop, start, backend)
    order = worst.sort(-1, descending=True).indices
    lost_rank = torch.empty_like(order).scatter_(-1, order, rank)
    first = torch.zeros(1, dtype=torch.int64, device=slots.device) if start is None else start
    toss = counter_noise(
        first[:, None, None, None],
        stop,
        slots.shape[1],
        seed=loss.seed,
        salt=loss.toss,
        start=start,
        backend=backend,
    )
    return lost_rank < loss.whole + (toss < loss.share % 1).int()


def _worst_first(
    slots: Tensor, rank: Tensor, loss: Loss, stop: Tensor, start: Tensor | None, backend: str
) -> Tensor:
    """Numbers [B, H, Tq, k], greatest where a key is lost first."""
    if loss.miss == "boundary":
        return rank
    if loss.miss == "heavy":
        return -rank
    if loss.miss == "recent":
        return slots
    draws = _draws(slots, loss, loss.keys, stop, start, 1, backend)
    if loss.miss == "page":
        pages = _draws(slots, loss, loss.pages, stop, start, loss.page, backend)
        return pages.double() + draws.double() / 2**24
    return draws


def _draws(
    slots: Tensor,
    loss: Loss,
    salt: int,
    stop: Tensor,
    start: Tensor | None,
    slots_together: int,
    backend: str,
) -> Tensor:
    return counter_noise(
        slots,
        stop,
        slots.shape[1],
        seed=loss.seed,
        salt=salt,
        start=start,
        per_query=loss.per_query,
        heads_together=loss.heads_together,
        slots_together=slots_together,
        backend=backend,
    )
