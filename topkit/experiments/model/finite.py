"""NaN and infinity are refused where tensors come in, by layer and head."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from topkit.errors import InputError

# The dimension of each tensor that counts heads.
HEADS = {
    "queries": 1,
    "keys": 1,
    "values": 1,
    "index_queries": 1,
    "index_weights": 2,
    "prefill_queries": 1,
}


def require_finite(
    where: str, tensors: Mapping[str, Tensor], start: Tensor | None = None, first: int = 0
) -> None:
    """Look once at all of what comes in: it waits for a GPU once, whatever the number of tensors.

    Shapes: start [B], the first real slot of each row: queries, keys and values [B, H, t, D] of the
    slots `first` on may hold anything before it.
    Raises: InputError naming `where` and the head.
    """
    floats = {name: x for name, x in tensors.items() if x.is_floating_point()}
    # A sum keeps what is not finite; one that overflows by itself only costs the closer look.
    if math.isfinite(sum(x.detach().sum(dtype=torch.float32) for x in floats.values())):
        return
    for name, x in floats.items():
        bad = ~x.isfinite()
        if start is not None:
            slots = torch.arange(first, first + x.shape[2], device=x.device)
            bad &= (slots >= start[:, None])[:, None, :, None]
        if bad.any():
            at = bad.nonzero()[0].tolist()
            head = f", head {at[HEADS[name]]}" if name in HEADS else ""
            raise InputError(f"{where}{head}: {name} hold NaN or infinity at {at}")
