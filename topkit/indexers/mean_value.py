# pyright: strict
"""The mean of the values that a query sees, by a sum that grows with the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Step


def sum_of(step: Step, first: int, stop: int) -> Tensor:
    """The sum of the real values of the slots first <= s < stop [B, Hk, Dv].

    In float64, so that parts add up to the whole. Raises: InputError where there are no values.
    """
    values = _values(step)[:, :, first:stop].double()
    slots = torch.arange(first, stop, device=values.device)
    padding = slots < step.starts(values.device)[:, None]
    return values.masked_fill(padding[:, None, :, None], 0).sum(2)


def mean_of(total: Tensor, queries: Tensor, slots: int, step: Step) -> Tensor:
    """The mean value of all that each of queries [B, Hq, Tq, D] sees [B, Hq, Tq, 1, Dv] float32.

    Shapes: total [B, Hk, Dv], `sum_of` all `slots`. A query that sees none has zeros.
    """
    count, summed = queries.shape[2], total[:, :, None]
    if step.stop is not None or count > 1:
        stop = step.stops(slots, count, queries.device).clamp_max(slots)
        summed = summed - _behind(stop, slots, step)
    seen = step.seen(slots, count, queries.device)[:, None, :, None]
    mean = (summed / seen.clamp_min(1)).masked_fill(seen == 0, 0).float()
    return mean.repeat_interleave(queries.shape[1] // mean.shape[1], 1)[..., None, :]


def _behind(stop: Tensor, slots: int, step: Step) -> Tensor:
    """The sums of the values from each stop [B or 1, Tq] on [B, Hk, Tq, Dv]."""
    first = int(stop.min())
    later = _values(step)[:, :, first:slots].double().flip(2).cumsum(2).flip(2)
    later = torch.cat([later, later.new_zeros(*later.shape[:2], 1, later.shape[3])], 2)
    rows = max(len(later), len(stop))
    at = (stop - first)[:, None, :, None].expand(rows, later.shape[1], -1, later.shape[3])
    return later.expand(rows, -1, -1, -1).gather(2, at)


def _values(step: Step) -> Tensor:
    values = step.cache.values
    if values is None:
        raise InputError(
            f"{step.reader} needs values, and there are none here; write sparq(mean_value=False)"
        )
    return values
