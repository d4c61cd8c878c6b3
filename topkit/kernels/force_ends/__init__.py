"""The first and the newest slots, scored above all others, or first in a list."""

# pyright: strict

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.force_ends import reference
from topkit.kernels.score.boundary import check_window

__all__ = ["ends_first", "force_ends"]

# Forced slots that the Triton kernels take, and entries of a list.
MOST, LONGEST = 4096, 1 << 14


def force_ends(
    scores: Tensor,
    sink: int,
    window: int,
    *,
    slots: Tensor | None = None,
    start: Tensor | None = None,
    stop: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Scores that are inf at the first `sink` and the newest `window` slots that each query sees.

    Shapes: scores [B, H, Tq, T], of all slots, written in place; or [B, H, Tq, n] of the `slots`
    [B, Hl, Tq, n], Hl a divisor of H, -1 for none, where the forced ones are taken out of their places and
    put behind: [B, H, Tq, n + sink + window], -inf and -1 where there are fewer. start [B], stop
    [B or 1, Tq].
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(scores=scores, stop=stop)
    checks.dims("scores", scores, 4)
    checks.typed("scores", scores, (torch.float32,))
    check_window(start, stop, scores)
    if slots is not None:
        checks.typed("slots", slots, (torch.int64,))
        checks.beside(scores.device, slots=slots)
        rows, _, count, width = scores.shape
        checks.shaped("slots", slots, (rows, slots.shape[1], count, width))
    if sink + window == 0:
        return scores, slots
    ends: dict[str, Any] = {"start": start, "stop": stop}
    if resolve(backend, scores, _unsupported(scores, slots, sink + window)) == "torch":
        return reference.force_ends(scores, sink, window, slots=slots, **ends)
    from topkit.kernels.force_ends import triton_impl

    return triton_impl.force_ends(scores, sink, window, slots=slots, **ends)


def ends_first(
    slots: Tensor,
    k: int,
    sink: int,
    window: int,
    *,
    start: Tensor | None = None,
    stop: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Lists of k slots: the first `sink` and the newest `window` that each query sees, then others.

    Shapes: slots [B, H, Tq, n], the best first, -1 for none; start [B], stop [B or 1, Tq] -> [B, H, Tq, k],
    the first ascending, the newest first, the others in their order, -1 last.
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(slots=slots, stop=stop)
    checks.dims("slots", slots, 4)
    checks.typed("slots", slots, (torch.int64,))
    check_window(start, stop, slots)
    own = None
    if max(k, slots.shape[3]) > LONGEST:
        own = f"lists must be at most {LONGEST} slots; got {max(k, slots.shape[3])}"
    ends: dict[str, Any] = {"start": start, "stop": stop}
    if resolve(backend, slots, own) == "torch":
        return reference.ends_first(slots, k, sink, window, **ends)
    from topkit.kernels.force_ends import triton_impl

    return triton_impl.ends_first(slots, k, sink, window, **ends)


def _unsupported(scores: Tensor, slots: Tensor | None, count: int) -> str | None:
    """What the kernel does not take, as a sentence."""
    if count > MOST:
        return f"at most {MOST} slots are forced; got {count}"
    if not scores.is_contiguous() or (slots is not None and not slots.is_contiguous()):
        return "scores and slots must be contiguous"
    return None
