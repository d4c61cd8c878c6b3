# pyright: strict
"""One bit a dimension: the signs of the keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from topkit.grammar import later
from topkit.indexers.base import Index, Step
from topkit.indexers.checks import flag
from topkit.indexers.mean_key import about_mean
from topkit.indexers.rotation import padded, rotated
from topkit.indexers.scored import Codes, Scored, pick_codes, score_visible_codes
from topkit.indexers.stated_cost import Shape, power_of_two
from topkit.indexers.traits import Traits
from topkit.kernels.codes import stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes


@dataclass(frozen=True)
class sign(Scored):
    """Scores a float query against the signs of the keys, and gives up their magnitudes.

    Zero counts as positive. center=True takes off the mean of the keys at build, as an offset that all
    keys share leaves their signs alike; hadamard=True spreads outliers by an orthonormal rotation.
    Source: sign-based codes as in arXiv 2603.14224, without a codebook.
    """

    center: bool = later(False)
    hadamard: bool = later(False)

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "arXiv 2603.14224"
    cost: ClassVar[str] = "reads 1 bit a dimension"
    examples: ClassVar[tuple[str, ...]] = ("sign()", "sign(center=True)", "sign(hadamard=True)")

    def __post_init__(self) -> None:
        flag(self, "center")
        flag(self, "hadamard")

    def traits(self) -> Traits:
        return Traits(score_all=True, fixed=True, drifts=self.center)

    def code_bytes(self, shape: Shape) -> float:
        width = power_of_two(shape.D) if self.hadamard else shape.D
        return shape.Hk * math.ceil(width / 8)

    def build(self, keys: Tensor, step: Step) -> Index:
        return about_mean(self, keys, step) if self.center else super().build(keys, step)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        keys = padded(keys) if self.hadamard else keys
        kind, width = stored("sign", keys.shape[3])
        codes = {"bits": keys.new_empty(*keys.shape[:3], width, dtype=kind)}
        self.write(keys, codes, 0, step)
        return codes

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        queries = rotated(queries, step.backend) if self.hadamard else queries
        return score_codes(queries, codes["bits"], dtype="sign", backend=step.backend)

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        keys = padded(keys) if self.hadamard else keys
        how: dict[str, Any] = {"hadamard": self.hadamard, "backend": step.backend}
        quantize_append(keys.detach(), codes["bits"], None, at, dtype="sign", **how)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        queries = rotated(queries, step.backend) if self.hadamard else queries
        return pick_codes(queries, codes["bits"], k, step, pool, dtype="sign")

    def visible_scores(
        self, queries: Tensor, codes: Codes, step: Step, pool: str | None = None
    ) -> Tensor:
        queries = rotated(queries, step.backend) if self.hadamard else queries
        return score_visible_codes(queries, codes["bits"], step, pool, dtype="sign")
