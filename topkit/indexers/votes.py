# pyright: strict
"""Votes: the attention that a prompt's own queries give its keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.scored import masked
from topkit.kernels.score import score

# Floats of weights that are made at a time.
PIECE = 1 << 25


def prompt_votes(queries: Tensor, keys: Tensor, step: Step) -> Tensor:
    """The weights that the newest queries [B, Hq, n, D] give to keys [B, Hk, T, D], summed over the queries.

    Shapes: -> [B, Hq, T] float64: no order of the sum turns a near tie. A query in padding has no vote.
    """
    votes = queries.new_zeros(*queries.shape[:2], keys.shape[2], dtype=torch.float64)
    for weights in _weights(queries, keys, step):
        votes += weights.sum(2, dtype=torch.float64)
    return votes


def _weights(queries: Tensor, keys: Tensor, step: Step) -> Iterator[Tensor]:
    """The causal attention weights [B, Hq, c, T] of the queries, a piece of them at a time."""
    count, length = queries.shape[2], keys.shape[2]
    stops = step.stops(length, count, keys.device)
    width = max(1, PIECE // (queries.shape[0] * queries.shape[1] * length))
    for first in range(0, count, width):
        some = slice(first, first + width)
        own = replace(step, stop=stops[:, some])
        scores = masked(score(queries[:, :, some].detach(), keys.detach()), own)
        yield step.weights(scores).nan_to_num(0.0)
