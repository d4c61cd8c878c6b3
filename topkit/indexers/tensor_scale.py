# pyright: strict
"""The float32 scale that all codes of a head share: fixed at build, as a served cache's is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.fitted import FittedIndex


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
class ScaledIndex(FittedIndex):
    """Codes of keys about a mean [B, Hk, 1, D], if there is one, divided by a scale [B, Hk, 1, 1].

    Queries are multiplied by the scale, so that scores are what they were.
    """

    scale: Tensor = field(kw_only=True)
    mean: Tensor | None = field(kw_only=True)

    fitted: ClassVar[tuple[str, ...]] = ("scale", "mean")
    read_by_queries: ClassVar[tuple[str, ...]] = ("scale",)

    def of_keys(self, keys: Tensor) -> Tensor:
        return (keys if self.mean is None else keys - self.mean).float() / self.scale

    def of_queries(self, queries: Tensor) -> Tensor:
        times = queries.shape[1] // self.scale.shape[1]
        return queries.float() * self.scale.repeat_interleave(times, 1)
