# pyright: strict
"""Quest: pages judged by the bounds of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.paged import Paged, Pages
from topkit.indexers.stated_cost import Shape
from topkit.indexers.traits import as_written
from topkit.kernels.page_bounds import append_bounds, score_bounds
from topkit.kernels.score import score


@dataclass(frozen=True)
class quest(Paged):
    """Keeps whole pages by an upper bound of their scores, and gives up telling keys of a page apart.

    A page's bound is sum_i max(q_i low_i, q_i high_i) over its element-wise extremes.
    Source: arXiv 2406.10774, section 3.2.
    """

    source: ClassVar[str] = "arXiv 2406.10774"
    cost: ClassVar[str] = "reads 2 keys a page"
    examples: ClassVar[tuple[str, ...]] = ("quest(page_size=4)", "quest()", "quest(page_size=1)")
    products: ClassVar[int] = 2

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
