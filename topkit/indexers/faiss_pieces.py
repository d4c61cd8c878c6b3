# pyright: strict
"""Vectors cut into pieces, and what their codebooks are trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

# Keys that a centroid is trained on.
POINTS = 256
# Seed of the sample.
SEED = 1234


def in_pieces(vectors: Tensor, dims: int) -> Tensor:
    """Vectors [..., D] with zeros behind them, up to whole pieces."""
    lacking = -vectors.shape[-1] % dims
    return pad(vectors, (0, lacking)) if lacking else vectors


def training(keys: Tensor, least: int, most: int) -> Any:
    """What is trained on keys [n, D]: an array of at most `most` of them, the same ones on every device.

    Where there are fewer than `least`, each comes again and again: k-means then takes the keys themselves.
    """
    some = keys
    if len(keys) > most:
        drawn = torch.randperm(len(keys), generator=torch.Generator().manual_seed(SEED))[:most]
        some = keys[drawn.sort().values.to(keys.device)]
    array = some.cpu().numpy()
    return np.resize(array, (least, array.shape[1])) if len(array) < least else array
