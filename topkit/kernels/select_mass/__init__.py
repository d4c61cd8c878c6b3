"""The fewest best scores that hold a share of their softmax."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.select_mass import reference
from topkit.kernels.select_topk import unsupported

__all__ = ["select_mass"]


def select_mass(
    scores: Tensor,
    k: int,
    *,
    mass: float,
    scaling: float,
    check: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The slots of the fewest best scores that hold `mass` of the softmax of scaling * scores, at most k.

    The best one always stays. Shapes: scores [..., T] float32, -inf where a slot may not be chosen ->
    [..., min(k, T)] int64, best first, -1 last. scaling is positive; `check` as `select_topk`.
    Raises: InputError for k < 1 and for NaN.
    """
    checks.tensors(scores=scores)
    k = checks.at_least_one("k", k)
    checks.typed("scores", scores, (torch.float32,))
    if resolve(backend, scores, unsupported(scores, k)) == "torch" or scores.numel() == 0:
        return reference.select_mass(scores, k, mass, scaling, check)
    from topkit.kernels.select_mass import triton_impl
    from topkit.kernels.select_topk import require_numbers

    rows = scores.reshape(-1, scores.shape[-1])
    slots, nan = triton_impl.select_mass(rows, k, mass, scaling)
    if check:
        require_numbers(nan)
    return slots.view(*scores.shape[:-1], -1)
