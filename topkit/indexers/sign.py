"""One bit a dimension: the signs of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.packing import pack, unpack
from topkit.indexers.scored import Codes, Scored
from topkit.kernels.score import score


@dataclass(frozen=True)
class sign(Scored):
    """Scores a float query against the signs of the keys, and gives up their magnitudes.

    Zero counts as positive. Source: sign-based codes as in arXiv 2603.14224, without a codebook.
    """

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "arXiv 2603.14224"
    cost: ClassVar[str] = "reads 1 bit a dimension"

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"bits": pack((keys >= 0).to(torch.uint8), 1)}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        # q . (2 b - 1) = 2 q . b - sum(q)
        queries = queries.float()
        bits = unpack(codes["bits"], 1, queries.shape[-1])
        return 2 * score(queries, bits) - queries.sum(-1, keepdim=True)
