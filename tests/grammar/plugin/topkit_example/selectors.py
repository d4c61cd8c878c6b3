"""An indexer, and a combinator that no entry point names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers import Combinator, Index, Scored, Selection, Step
from topkit.indexers.scored import Codes
from topkit.kernels.score import score

NUMBERS = (1, 2)


@dataclass(frozen=True)
class leading(Scored):
    """Scores over the first `dims` dimensions alone."""

    dims: int = 8

    family: ClassVar[str] = "projected"
    source: ClassVar[str] = "an example"
    cost: ClassVar[str] = "reads dims numbers a key"

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"kept": keys[..., : self.dims].clone()}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        return score(queries[..., : self.dims], codes["kept"])


@dataclass(frozen=True)
class twice(Combinator):
    """As base; `note` may be any text."""

    note: str = ""

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        return index.select(queries, k, step.given_to(self.base))
