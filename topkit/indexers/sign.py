# pyright: strict
"""One bit a dimension: the signs of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.scored import Codes, Scored, pick_codes
from topkit.indexers.traits import Traits
from topkit.kernels.codes import stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes


@dataclass(frozen=True)
class sign(Scored):
    """Scores a float query against the signs of the keys, and gives up their magnitudes.

    Zero counts as positive. Source: sign-based codes as in arXiv 2603.14224, without a codebook.
    """

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "arXiv 2603.14224"
    cost: ClassVar[str] = "reads 1 bit a dimension"

    def traits(self) -> Traits:
        return Traits(score_all=True, fixed=True)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        kind, width = stored("sign", keys.shape[3])
        codes = {"bits": keys.new_empty(*keys.shape[:3], width, dtype=kind)}
        self.write(keys, codes, 0, step)
        return codes

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        return score_codes(queries, codes["bits"], dtype="sign", backend=step.backend)

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        quantize_append(keys.detach(), codes["bits"], None, at, dtype="sign", backend=step.backend)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        return pick_codes(queries, codes["bits"], k, step, pool, dtype="sign")
