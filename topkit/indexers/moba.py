# pyright: strict
"""MoBA: pages judged by the mean of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.paged import Paged, Pages
from topkit.indexers.stated_cost import Shape
from topkit.kernels.score import score


@dataclass(frozen=True)
class moba(Paged):
    """Keeps the query's own page, then whole pages by the dot product with their mean key.

    Departs from the paper, whose k counts pages of 512 keys or more and whose models are trained so:
    k counts keys, and the last page that it reaches is cut to its newest.
    Source: arXiv 2502.13189, section 2.2.
    """

    source: ClassVar[str] = "arXiv 2502.13189"
    cost: ClassVar[str] = "reads 1 key a page"
    examples: ClassVar[tuple[str, ...]] = ("moba(page_size=4)", "moba()", "moba(page_size=1)")
    current_first: ClassVar[bool] = True

    def summary_bytes(self, shape: Shape) -> float:
        return shape.Hk * shape.D * 4 + 4  # the sum in float32, and a count

    def summarise(self, keys: Tensor, real: Tensor) -> Pages:
        total = keys.masked_fill(~real, 0).sum(3, dtype=torch.float32)
        return {"total": total, "count": real.sum(3, dtype=torch.float32)}

    def join(self, a: Pages, b: Pages) -> Pages:
        return {name: a[name] + b[name] for name in a}

    def score(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        return score(queries, pages["total"]) / pages["count"].mT
