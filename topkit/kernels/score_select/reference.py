"""The best k keys by their codes: all are scored, then the best are selected."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from topkit.kernels.score import score_codes, score_lightning
from topkit.kernels.select_topk import select_topk


def score_select(
    queries: Tensor,
    codes: Tensor,
    k: int,
    *,
    order: str | None = "score",
    check: bool = True,
    backend: str = "torch",
    **options: Any,
) -> Tensor:
    """As topkit.kernels.score_select.score_select, by the two operations that it is made of."""
    scores = score_codes(queries, codes, backend=backend, **options)
    return select_topk(scores, k, order=order, check=check, backend=backend)


def score_select_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    k: int,
    *,
    order: str | None = "score",
    check: bool = True,
    backend: str = "torch",
    **options: Any,
) -> Tensor:
    """As topkit.kernels.score_select.score_select_lightning, by the two operations it is made of."""
    scores = score_lightning(queries, keys, gates, backend=backend, **options)
    return select_topk(scores, k, order=order, check=check, backend=backend)
