"""What was measured: a value, and the interval that its units leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.96  # of 95 %


@dataclass(frozen=True)
class Ours:
    """A value, and a 95 % interval around it."""

    value: float
    low: float
    high: float


def mean_of(units: Sequence[float] | np.ndarray) -> Ours:
    """The mean of layers, haystacks or keys, by their spread."""
    values = np.asarray(units, dtype=float)
    value = float(values.mean())
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Ours(value, value - half, value + half)


def share_of(hits: int, count: int) -> Ours:
    """A share of so many trials, with Wilson's interval."""
    share, square = hits / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return Ours(share, min(middle - half, share), max(middle + half, share))
