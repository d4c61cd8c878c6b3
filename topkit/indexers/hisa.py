# pyright: strict
"""HISA: blocks by their mean key, then their keys one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.grammar import later
from topkit.indexers.base import Index, Step
from topkit.indexers.checks import whole
from topkit.indexers.index_blocks import IndexBlocks
from topkit.indexers.lightning import lightning
from topkit.indexers.moba import moba
from topkit.indexers.pages import Pages
from topkit.indexers.scored import ScoredIndex
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.indexers.two_stage import TwoStageIndex
from topkit.kernels.score import score_lightning


@dataclass(frozen=True)
class hisa(moba):
    """Keeps the best keys, by exact scores, of the `pages` blocks whose mean key is best.

    With `weights`, which are lightning's as its dtype is, scores are those of DeepSeek's indexer, as in the
    paper, of blocks by the mean of their index keys as they are stored; else dot products of queries and keys. Where
    these blocks hold fewer keys than k, the next are read until they do. Source: arXiv 2603.28458, section 3.
    """

    page_size: int = 128
    pages: int = 64
    weights: str = later("")
    dtype: str = later("fp32")

    source: ClassVar[str] = "arXiv 2603.28458"
    cost: ClassVar[str] = "reads 1 key a page, and the keys of 64 pages"
    examples: ClassVar[tuple[str, ...]] = (
        "hisa(page_size=4, pages=3)",
        "hisa()",
        "hisa(page_size=1, pages=7)",
        "hisa(page_size=4, pages=3, weights='given', dtype='fp8')",
    )
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {
        "pages": range(1, 1025),
        "page_size": range(1, 1025),
    }
    # A query's own block stands with the others.
    current_first: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "pages", 1)
        if self.scorer is None and self.dtype != "fp32":
            raise InputError(
                f"hisa: dtype={self.dtype!r} is of lightning's keys; give weights too, as weights='given'"
            )

    @property
    def scorer(self) -> lightning | None:
        """Whose scores they are, if not dot products."""
        return lightning(self.weights, self.dtype) if self.weights else None

    def traits(self) -> Traits:
        needs = super().traits().needs if self.scorer is None else self.scorer.needs
        return replace(super().traits(), needs=needs, score_all=False, fixed=False)

    def widths(self) -> dict[str, int]:
        return dict(super().widths()) if self.scorer is None else self.scorer.widths()

    def models(self) -> frozenset[str]:
        return super().models() if self.scorer is None else self.scorer.models()

    def files(self) -> tuple[Path, ...]:
        return super().files() if self.scorer is None else self.scorer.files()

    def costs(self, shape: Shape) -> Cost:
        if self.scorer is not None:
            return self._of_index(self.scorer.costs(shape), self.scorer, shape)
        s, read = shape, shape.Hq * least(shape.T, self.pages * self.page_size) * shape.D
        # How full the last block is, and whether it is among the best, the keys say.
        return replace(super().costs(s).besides(read * s.e, read), estimated=True)

    def _of_index(self, every: Cost, scorer: lightning, shape: Shape) -> Cost:
        """The cost of fewer index keys than `every` one, and of a mean for each block."""
        s, width = shape, scorer.key_width(shape)
        blocks, key = math.ceil(s.T / self.page_size), scorer.code_bytes(shape)
        read, summary = least(s.T, self.pages * self.page_size), 4 * width + 4
        unread = scorer.heads_of(shape) * width * (s.T - read - blocks)
        return replace(
            every,
            index=key + summary * blocks / s.T,
            read=summary * blocks + key * read,
            operations=every.operations - unread,
            estimated=True,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        if self.scorer is None:
            index = TwoStageIndex(self, blocks=self.pages)
        else:
            index = IndexBlocks(self, blocks=self.pages, own=ScoredIndex(self.scorer))
        index.append(keys, step)
        return index

    def score(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        if self.scorer is None:
            return super().score(queries, pages, step)
        vectors, gates = self.scorer.asked(queries, step)
        means = pages["total"] / pages["count"]
        return score_lightning(vectors, means, gates, backend="torch")
