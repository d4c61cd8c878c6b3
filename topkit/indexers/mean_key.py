# pyright: strict
"""The mean of the keys at build, subtracted from all keys: it adds the same to every score of a query."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from topkit.indexers.base import Index, Step
from topkit.indexers.scored import Scored, ScoredIndex

# Keys that are summed at a time, in float64.
CHUNK = 1 << 12


def mean_key(keys: Tensor, step: Step) -> Tensor:
    """The mean of the real keys of [B, Hk, t, D], for each row and head [B, Hk, 1, D] float32.

    Padding is left out; a row of nothing else has zeros. Summed in float64, so that a row has one mean
    whatever stands beside it, and on every device.
    """
    keys, start = keys.detach(), step.starts(keys.device)[:, None]
    total = keys.new_zeros(*keys.shape[:2], 1, keys.shape[3], dtype=torch.float64)
    for first in range(0, keys.shape[2], CHUNK):
        part = keys[:, :, first : first + CHUNK].double()
        slots = torch.arange(first, first + part.shape[2], device=keys.device)
        padding = (slots < start)[:, None, :, None]
        total += part.masked_fill(padding, 0).sum(2, keepdim=True)
    count = (keys.shape[2] - start).clamp_min(1)
    return (total / count[:, :, None, None]).float()


def about_mean(recipe: Scored, keys: Tensor, step: Step) -> Index:
    """An index of what is left of the keys, and of those to come, without the mean of these."""
    index = MeanIndex(recipe, mean=mean_key(keys, step))
    index.append(keys, step)
    return index


@dataclass
class MeanIndex(ScoredIndex):
    """Codes of keys about a mean [B, Hk, 1, D] that never changes."""

    mean: Tensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.mean.untyped_storage().nbytes()

    def append(self, keys: Tensor, step: Step) -> None:
        super().append(keys - self.mean, step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.mean = self.mean[rows]
