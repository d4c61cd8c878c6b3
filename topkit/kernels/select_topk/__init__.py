"""Exact top-k of rows of scores."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.select_topk import reference
from topkit.kernels.select_topk.order import ORDERS, by_rank, by_slot

__all__ = ["LARGEST_K", "select_topk"]

# What the Triton kernel takes. A longer row would need more candidates than one program can hold.
LARGEST_K = 4096
LONGEST = 1 << 22
# A list of slots is searched at once.
LONGEST_LIST = 1 << 13
# What has an order of its own, and room for -inf.
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def select_topk(
    scores: Tensor,
    k: int,
    *,
    stop: Tensor | None = None,
    slots: Tensor | None = None,
    order: str | None = "score",
    check: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The slots of the min(k, T) best scores of each row: all above the k-th, then the lowest slots.

    Shapes: scores [..., T], -inf where a slot may not be chosen; stop, which broadcasts to [...], one
    past the last slot that counts; slots [..., T] int64, whose scores they are, each once (None: their
    places), -inf where it is -1 -> [..., min(k, T)] int64, -1 last where a row has fewer slots;
    best first ("score"), ascending ("slot"), or as they come (None). Without `check` nothing waits
    for the GPU, and a row that holds NaN is -1 throughout.
    Raises: InputError for k < 1, for NaN, and where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(scores=scores)
    k = checks.at_least_one("k", k)
    if scores.dim() == 0:
        raise InputError("scores must have at least one dimension; got a number")
    checks.typed("scores", scores, DTYPES)
    checks.one_of("order", order, ORDERS)
    _check_stop(stop, scores)
    _check_slots(slots, stop, scores)
    own = unsupported(scores, k) or _too_long(slots)
    if resolve(backend, scores, own) == "torch" or scores.numel() == 0:
        return _in_torch(scores, k, stop, slots, order, check)
    from topkit.kernels.select_topk import triton_impl

    lead, length = scores.shape[:-1], scores.shape[-1]
    rows = scores.reshape(-1, length)
    stop = None if stop is None else stop.expand(lead).reshape(-1)
    named = None if slots is None else slots.reshape(-1, length).contiguous()
    chosen, nan = triton_impl.select_topk(rows, k, stop, order == "score", named)
    return ordered(chosen, nan, order, check).view(*lead, -1)


def unsupported(scores: Tensor, k: int) -> str | None:
    """What the kernel does not take, as a sentence."""
    if scores.dtype != torch.float32:
        return f"scores must be float32; got {scores.dtype}"
    if scores.shape[-1] > LONGEST:
        return f"scores must be rows of at most {LONGEST}; got shape {tuple(scores.shape)}"
    return too_many(k) or checks.unpacked(scores=scores)


def too_many(k: int) -> str | None:
    """That k is more than the kernel takes, as a sentence."""
    return f"k must be at most {LARGEST_K}; got {k}" if k > LARGEST_K else None


def ordered(slots: Tensor, nan: Tensor, order: str | None, check: bool) -> Tensor:
    """What the kernel chose [R, k], ranked if that is the order, in the order that is wanted."""
    if check:
        require_numbers(nan)
    if order == "score":
        return by_rank(slots)
    return by_slot(slots) if order == "slot" else slots


def require_numbers(nan: Tensor) -> None:
    """Refuse scores of which the kernel says that some row holds NaN."""
    if nan.any():
        raise InputError("scores hold NaN; check the queries and keys that made them")


def _in_torch(
    scores: Tensor,
    k: int,
    stop: Tensor | None,
    slots: Tensor | None,
    order: str | None,
    check: bool,
) -> Tensor:
    if stop is not None:
        gone = torch.arange(scores.shape[-1], device=scores.device) >= stop[..., None]
        scores = scores.masked_fill(gone, float("-inf"))
    if not check:
        scores = scores.masked_fill(scores.isnan().any(-1, keepdim=True), float("-inf"))
    chosen = reference.select_topk(scores, k, slots)
    return by_slot(chosen) if order == "slot" else chosen


def _too_long(slots: Tensor | None) -> str | None:
    """That a list of slots is longer than one program holds, as a sentence."""
    if slots is None or slots.shape[-1] <= LONGEST_LIST:
        return None
    return f"slots must be at most {LONGEST_LIST} a row; got {slots.shape[-1]}"


def _check_slots(slots: Tensor | None, stop: Tensor | None, scores: Tensor) -> None:
    if slots is None:
        return
    checks.typed("slots", slots, (torch.int64,))
    checks.beside(scores.device, slots=slots)
    checks.shaped("slots", slots, scores.shape)
    if stop is not None:
        raise InputError("stop is of slots that are places; give it or slots")


def _check_stop(stop: Tensor | None, scores: Tensor) -> None:
    if stop is None:
        return
    checks.typed("stop", stop, checks.PLACES)
    checks.beside(scores.device, stop=stop)
    try:
        stop.expand(scores.shape[:-1])
    except RuntimeError:
        raise InputError(
            f"stop must broadcast to {tuple(scores.shape[:-1])}; got {tuple(stop.shape)}"
        ) from None
