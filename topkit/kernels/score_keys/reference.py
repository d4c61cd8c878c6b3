"""Dot products of queries with the keys that they see, in torch."""

from __future__ import annotations

from torch import Tensor

from topkit.kernels.score.reference import masked, score


def score_keys(
    queries: Tensor, keys: Tensor, *, start: Tensor | None = None, stop: Tensor | None = None
) -> Tensor:
    """As topkit.kernels.score_keys.score_keys."""
    return masked(score(queries, keys), start, stop)
