"""Uniformly random keys: the control that must stay near chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.noise import noise
from topkit.indexers.scored import Codes, Scored


@dataclass(frozen=True)
class random(Scored):
    """Each query head keeps k keys drawn anew at every step, without replacement."""

    family: ClassVar[str] = "control"
    source: ClassVar[str] = "control"
    cost: ClassVar[str] = "reads nothing"

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"none": keys[..., :0]}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        rows, heads, count, _ = queries.shape
        draws = noise(step, codes["none"].shape[2], count, heads, queries.device)
        return draws.expand(rows, -1, -1, -1)
