"""Counter-based noise: the same number for the same place, in any batch, order or device."""

# pyright: strict
from __future__ import annotations

import zlib

from torch import Tensor

from topkit.indexers.base import Step
from topkit.kernels.counter_noise import counter_noise


def noise(
    step: Step,
    length: int,
    queries: Tensor,
    *,
    slots: Tensor | None = None,
    salt: int = 0,
    per_query: bool = True,
    heads_together: int = 1,
    slots_together: int = 1,
) -> Tensor:
    """Uniform numbers in [0, 1), hashed from (seed, salt, layer, head, query and key position).

    Shapes: queries [B, H, Tq, ...], of which H, Tq and the device are read; slots [B or 1, H or 1, Tq
    or 1, n] (None: all `length` slots, n = length) -> [B or 1, H, Tq, n] float32. Positions count
    from each row's first real slot, so that padding changes nothing. `per_query=False` gives every
    query the same numbers; runs of `heads_together` heads, or of `slots_together` slots, share one.
    """
    heads, count, device = queries.shape[1], queries.shape[2], queries.device
    return counter_noise(
        length if slots is None else slots,
        step.stops(length, count, device),
        heads,
        seed=step.seed,
        salt=salt_of(step, salt),
        start=step.start,
        per_query=per_query,
        heads_together=heads_together,
        slots_together=slots_together,
        backend=step.backend,
    )


def salt_of(step: Step, salt: int) -> int:
    """What noise is hashed from beside the seed, heads, queries and slots: layer and salt."""
    return step.layer * 0x27D4EB2F + salt * 0x9E3779B9


def seed_of(seed: int, *places: object) -> int:
    """The seed of one text, a sample or a haystack: what lasts for a stream is drawn anew in the next."""
    return zlib.crc32(repr((seed, *places)).encode())
