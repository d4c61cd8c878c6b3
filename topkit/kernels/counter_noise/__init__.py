"""Counter-based noise: numbers hashed from where they are, in any batch, order or device."""

# pyright: strict

from __future__ import annotations

from torch import Tensor

from topkit.kernels.backend import resolve
from topkit.kernels.counter_noise import reference

__all__ = ["counter_noise"]


def counter_noise(
    slots: Tensor | int,
    stop: Tensor,
    heads: int,
    *,
    seed: int | Tensor,
    salt: int = 0,
    start: Tensor | None = None,
    per_query: bool = True,
    heads_together: int = 1,
    slots_together: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Uniform numbers in [0, 1) for slots [B or 1, H or 1, Tq or 1, n], or all of so many: [B or 1, H, Tq, n].

    Shapes: stop [B or 1, Tq], one past each query's last slot; start [B or 1], the first real slot of each
    row, from which both count (None: 0). The lower 32 bits of seed * 0x165667B1 + salt, the seed a number or
    [] int64, are hashed with slot, head and query. `per_query=False` gives every query the same numbers; runs of
    `heads_together` heads, or of `slots_together` slots, share one.
    """
    some = {"per_query": per_query, "heads": heads_together, "slots": slots_together}
    if resolve("torch" if backend == "torch" else "auto", stop) == "torch":
        return reference.counter_noise(slots, stop, heads, (seed, salt), start, some)
    from topkit.kernels.counter_noise import triton_impl

    return triton_impl.counter_noise(slots, stop, heads, (seed, salt), start, some)
