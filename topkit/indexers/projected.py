# pyright: strict
"""Learnt low-rank maps: queries and keys of each head, in the few directions that tell keys apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.projected_file import KIND, load
from topkit.indexers.scored import Codes, Scored, encoded
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.indexers.weights_file import path_of
from topkit.kernels.score import score


@dataclass(frozen=True)
class projected(Scored):
    """Scores keys after a learnt map to few dimensions, queries after another, each head by its own.

    A KV head has one map and each of its query heads one, [r, D]; projected keys are kept in bfloat16. weights
    is a safetensors file that `topkit train projected` wrote, for the layers and heads of one model, or the
    name of a bundled one.
    Source: query and key projections learnt on a frozen model (ann-sparseattention) by the distillation
    loss of arXiv 2512.02556, section 2.1, of each head by itself.
    """

    weights: str = "reference"

    family: ClassVar[str] = "trained"
    source: ClassVar[str] = "unixsysdev/ann-sparseattention"
    cost: ClassVar[str] = "reads 2 bytes for each of the file's r dimensions"
    examples: ClassVar[tuple[str, ...]] = ("projected()",)
    # What to do where it was made for another model.
    remedy: ClassVar[str] = (
        "make maps for it by `topkit train projected MODEL` and give them as weights=FILE"
    )

    def __post_init__(self) -> None:
        load(self.weights)

    def traits(self) -> Traits:
        return Traits(score_all=True, fixed=True)

    def widths(self) -> dict[str, int]:
        return load(self.weights).widths()

    def models(self) -> frozenset[str]:
        return load(self.weights).models

    def files(self) -> tuple[Path, ...]:
        return (path_of(KIND, self.weights),)

    def code_bytes(self, shape: Shape) -> float:
        return shape.Hk * 2 * load(self.weights).rank

    def costs(self, shape: Shape) -> Cost:
        s, rank = shape, load(self.weights).rank
        mapped = s.Hk * rank * s.D
        operations = s.Hq * (s.T * rank + rank * s.D)
        return replace(super().costs(s), operations=operations, build=s.T * mapped, append=mapped)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        # From float64, so that a number is rounded alike whatever stands beside it.
        mapped = load(self.weights, keys.device).of("keys", step.layer, keys.detach())
        return {"projected": mapped.to(torch.bfloat16)}

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        if isinstance(at, Tensor):
            codes["projected"].index_copy_(2, at, encoded(self, keys, step)["projected"])
        else:
            super().write(keys, codes, at, step)

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        maps = load(self.weights, queries.device)
        return score(maps.of("queries", step.layer, queries).float(), codes["projected"])
