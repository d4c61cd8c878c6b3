"""Exact Top-k: the oracle that every other indexer is judged against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.scored import best
from topkit.kernels.score import score


@dataclass(frozen=True)
class exact(Indexer):
    """Each query head keeps its k largest dot products, in float32.

    Source: arXiv 2512.03494, section "Exact Top-k Decoding".
    """

    family: ClassVar[str] = "oracle"
    source: ClassVar[str] = "arXiv 2512.03494"
    cost: ClassVar[str] = "reads every key"
    needs: ClassVar[frozenset[str]] = frozenset({"cache"})
    score_all: ClassVar[bool] = True

    def build(self, keys: Tensor, step: Step) -> Index:
        return _Exact(keys.shape[2])


class _Exact(Index):
    """Holds nothing but a count: the keys are the cache's."""

    nbytes = 0

    def __init__(self, length: int) -> None:
        self._length = length

    @property
    def length(self) -> int:
        return self._length

    def append(self, keys: Tensor, step: Step) -> None:
        self._length += keys.shape[2]

    def truncate(self, length: int, step: Step) -> None:
        self._length = length

    def reorder(self, rows: Tensor) -> None:
        pass

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return score(queries, step.cache.keys)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        keys = step.cache.keys
        per_key = keys.shape[1] * keys.shape[3] * keys.element_size()
        return best(self.score(queries, step), k, step, per_key)
