# pyright: strict
"""Quest: pages judged by the bounds of their keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.grammar import later
from topkit.indexers.base import Index, Step
from topkit.indexers.checks import whole
from topkit.indexers.paged import Paged, Pages
from topkit.indexers.spread import SpreadIndex
from topkit.indexers.stated_cost import Shape
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.page_bounds import append_bounds, score_bounds
from topkit.kernels.score import score


@dataclass(frozen=True)
class quest(Paged):
    """Keeps whole pages by an upper bound of their scores, and gives up telling keys of a page apart.

    A page's bound is sum_i max(q_i low_i, q_i high_i) over its element-wise extremes. min_pages is the
    least number of pages that is read, 3 in the paper's code, which then reads more than the budget; here
    a k that is fewer pages is spread over so many, the newest keys of each.
    Source: arXiv 2406.10774, section 3.2; the minimum, its evaluation/quest_attention.py.
    """

    min_pages: int = later(1)

    source: ClassVar[str] = "arXiv 2406.10774"
    cost: ClassVar[str] = "reads 2 keys a page"
    examples: ClassVar[tuple[str, ...]] = (
        "quest(page_size=4)",
        "quest()",
        "quest(page_size=1)",
        "quest(page_size=4, min_pages=3)",
    )
    products: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "min_pages", 1)

    def traits(self) -> Traits:
        # Spread over pages, a list leaves out keys of the best.
        plain = self.min_pages == 1
        return replace(super().traits(), score_all=plain, fixed=plain)

    def build(self, keys: Tensor, step: Step) -> Index:
        if self.min_pages == 1:
            return super().build(keys, step)
        index = SpreadIndex(self, least=self.min_pages)
        index.append(keys, step)
        return index

    def summary_bytes(self, shape: Shape) -> float:
        return 2 * shape.key_bytes

    def summarise(self, keys: Tensor, real: Tensor) -> Pages:
        low, high = keys.masked_fill(~real, torch.inf), keys.masked_fill(~real, -torch.inf)
        return {"low": low.amin(3), "high": high.amax(3)}

    def join(self, a: Pages, b: Pages) -> Pages:
        return {"low": a["low"].minimum(b["low"]), "high": a["high"].maximum(b["high"])}

    def write(self, pages: Pages, keys: Tensor, step: Step) -> None:
        assert step.at is not None
        if not as_written(self, quest, "summarise"):
            super().write(pages, keys, step)
            return
        how: dict[str, Any] = {"page_size": self.page_size, "backend": step.backend}
        append_bounds(keys, pages["low"], pages["high"], step.at, start=step.start, **how)

    def visible_scores(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        if step.at is None or step.stop is None or not as_written(self, quest, "score"):
            return super().visible_scores(queries, pages, step)
        how: dict[str, Any] = {"page_size": self.page_size, "backend": step.backend}
        seen: dict[str, Any] = {"start": step.start, "stop": step.stop}
        return score_bounds(queries, pages["low"], pages["high"], **seen, **how)

    def score(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        queries = queries.float()
        return score(queries.clamp_min(0), pages["high"]) + score(
            queries.clamp_max(0), pages["low"]
        )
