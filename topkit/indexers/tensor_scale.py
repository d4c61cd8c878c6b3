# pyright: strict
"""The float32 scale that all codes of a head share: fixed at build, as a served cache's is."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.scored import ScoredIndex


def tensor_scale(keys: Tensor, step: Step, largest: float) -> Tensor:
    """What the real keys of [B, Hk, t, D] are divided by to be at most `largest` [B, Hk, 1, 1] float32.

    Padding is left out; where there is nothing but zeros it is one.
    """
    slots = torch.arange(keys.shape[2], device=keys.device)
    padding = (slots < step.starts(keys.device)[:, None])[:, None, :, None]
    magnitudes = keys.detach().float().abs().masked_fill(padding, 0)
    most = magnitudes.flatten(2).amax(2) if keys.numel() else magnitudes.new_zeros(keys.shape[:2])
    scale = most / torch.full_like(most, largest)
    return torch.where(scale > 0, scale.clamp_min(2.0**-126), 1.0)[..., None, None]


@dataclass
class ScaledIndex(ScoredIndex):
    """Codes of keys about a mean [B, Hk, 1, D], if there is one, divided by a scale [B, Hk, 1, 1].

    Neither ever changes. Queries are multiplied by the scale, so that scores are what they were.
    """

    scale: Tensor = field(kw_only=True)
    mean: Tensor | None = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        own = [x for x in (self.scale, self.mean) if x is not None]
        return super().nbytes + sum(x.untyped_storage().nbytes() for x in own)

    def append(self, keys: Tensor, step: Step) -> None:
        keys = keys if self.mean is None else keys - self.mean
        super().append(keys.float() / self.scale, step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.scale = self.scale[rows]
        self.mean = None if self.mean is None else self.mean[rows]

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return super().score(self._scaled(queries), step)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        return super().chosen(self._scaled(queries), k, step, pool)

    def _scaled(self, queries: Tensor) -> Tensor:
        return queries.float() * self.scale.repeat_interleave(
            queries.shape[1] // self.scale.shape[1], 1
        )
