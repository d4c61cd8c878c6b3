# pyright: strict
"""How high the queries that follow a key score it, of the queries known at build."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.mean_key import CHUNK


def mean_query(queries: Tensor, length: int, step: Step) -> Tensor:
    """The mean of the queries [B, Hq, n, D] of the last n slots, padding left out: [B, Hq, D] float64.

    A row of nothing but padding has zeros.
    """
    summed, first = _summed(queries, length, step)
    count = queries.shape[2] - first
    return summed[:, :, -1] / count.clamp_min(1)[:, None, None]


def local_weights(queries: Tensor, keys: Tensor, local: int, step: Step) -> Tensor:
    """The mean dot product of each key with the queries of the next `local` slots [B, Hq, T] float32.

    Of keys [B, Hk, T, D] and the last queries [B, Hq, n, D] of their slots; all of these for a key that none
    follows within `local`. In float64, so that rows do not depend on what stands beside them.
    """
    length, count = keys.shape[2], queries.shape[2]
    summed, first = _summed(queries, length, step)
    mean = mean_query(queries, length, step)[:, :, None]
    weights = mean.new_empty(*queries.shape[:2], length, dtype=torch.float32)
    group = queries.shape[1] // keys.shape[1]
    for begin in range(0, length, CHUNK):
        part = keys[:, :, begin : begin + CHUNK].double().repeat_interleave(group, 1)
        slot = torch.arange(begin, begin + part.shape[2], device=keys.device)
        behind = slot + 1 - (length - count)
        low = behind.clamp(0, count).maximum(first[:, None])
        high = (behind + local).clamp(0, count).maximum(low)
        at = torch.stack([low, high])[:, :, None, :, None]
        at = at.expand(2, *mean.shape[:2], -1, mean.shape[3])
        low_sum, high_sum = (summed.gather(2, one) for one in at)
        number = (high - low)[:, None, :, None]
        own = (high_sum - low_sum) / number.clamp_min(1)
        query = own.where(number > 0, mean)
        weights[:, :, begin : begin + CHUNK] = (part * query).sum(-1)
    return weights


def _summed(queries: Tensor, length: int, step: Step) -> tuple[Tensor, Tensor]:
    """Sums of the first 0, 1, ... queries [B, Hq, n + 1, D], padding as zeros, and the first real one [B]."""
    count = queries.shape[2]
    start = step.starts(queries.device).expand(len(queries))
    first = (start - (length - count)).clamp(0, count)
    padding = torch.arange(count, device=queries.device) < first[:, None]
    own = queries.double().masked_fill(padding[:, None, :, None], 0)
    zero = own.new_zeros(*own.shape[:2], 1, own.shape[3])
    return torch.cat([zero, own.cumsum(2)], 2), first
