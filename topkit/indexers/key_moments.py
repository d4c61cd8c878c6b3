# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""What the real keys of each row and head are like: channel by channel, and in which directions they differ.

Summed in float64, so that a row is what it is whatever stands beside it, and on every device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.mean_key import CHUNK, mean_key

# Of the mean variance: what parts directions in which keys do not differ at all, the lower channel first.
_APART = 1e-10


def real_keys(keys: Tensor, step: Step) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys [B, Hk, t, D] some slots at a time, in float64, and which are padding [B or 1, 1, t, 1]."""
    start = step.starts(keys.device)[:, None]
    for first in range(0, keys.shape[2], CHUNK):
        part = keys[:, :, first : first + CHUNK].double()
        slots = torch.arange(first, first + part.shape[2], device=keys.device)
        yield part, (slots < start)[:, None, :, None]


def counted(keys: Tensor, step: Step) -> Tensor:
    """How many keys of each row are real [B or 1, 1, 1, 1], at least 1."""
    return (keys.shape[2] - step.starts(keys.device)).clamp_min(1)[:, None, None, None]


def mean_magnitude(keys: Tensor, step: Step) -> Tensor:
    """The mean |k_i| of each channel of keys [B, Hk, T, D]: [B, Hk, D] float64."""
    total = keys.new_zeros(*keys.shape[:2], keys.shape[3], dtype=torch.float64)
    for part, padding in real_keys(keys, step):
        total += part.abs().masked_fill(padding, 0).sum(2)
    return total / counted(keys, step)[..., 0]


def principal_components(keys: Tensor, step: Step) -> Tensor:
    """The principal components of keys [B, Hk, T, D], leading first: columns of [B, Hk, D, D] float32."""
    width, mean = keys.shape[3], mean_key(keys, step).double()
    moment = keys.new_zeros(*keys.shape[:2], width, width, dtype=torch.float64)
    for part, padding in real_keys(keys, step):
        about = (part - mean).masked_fill(padding, 0)
        moment += about.mT @ about
    return components(moment / counted(keys, step))


def components(covariance: Tensor) -> Tensor:
    """The eigenvectors of covariances [..., D, D], the greatest eigenvalue first, as float32 columns."""
    width = covariance.shape[-1]
    apart = torch.arange(width, 0, -1, device=covariance.device, dtype=torch.float64) / width
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    variance = variance.where(variance > 0, 1)
    values = covariance + torch.diag_embed(_APART * variance * apart)
    vectors: Tensor = torch.linalg.eigh(values).eigenvectors
    return vectors.flip(-1).float()
