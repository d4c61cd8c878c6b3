"""The first and the newest slots, scored above all others, in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def force_ends(
    scores: Tensor,
    sink: int,
    window: int,
    *,
    slots: Tensor | None,
    start: Tensor | None,
    stop: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """As topkit.kernels.force_ends.force_ends."""
    first = torch.zeros_like(stop[:, 0]) if start is None else start
    first, stop = first[:, None, None, None], stop[:, None, :, None]
    if slots is None:
        place = torch.arange(scores.shape[3], device=scores.device)
        forced = (place >= first) & (place < stop) & _at_an_end(place, first, stop, sink, window)
        return scores.masked_fill_(forced, float("inf")), None
    slots = slots.repeat_interleave(scores.shape[1] // slots.shape[1], 1)
    gone = _at_an_end(slots, first, stop, sink, window)
    ends = _ends(first, stop, sink, window, sink + window).expand(*scores.shape[:3], -1)
    forced = torch.zeros_like(ends, dtype=scores.dtype).masked_fill(ends >= 0, float("inf"))
    return (
        torch.cat(
            [
                scores.masked_fill(gone, float("-inf")),
                forced.masked_fill(ends < 0, float("-inf")),
            ],
            -1,
        ),
        torch.cat([slots.masked_fill(gone, -1), ends], -1),
    )


def ends_first(
    slots: Tensor, k: int, sink: int, window: int, *, start: Tensor | None, stop: Tensor
) -> Tensor:
    """As topkit.kernels.force_ends.ends_first."""
    first = torch.zeros_like(stop[:, 0]) if start is None else start
    first, stop = first[:, None, None, None], stop[:, None, :, None]
    ends = _ends(first, stop, sink, window, min(k, sink + window)).expand(*slots.shape[:3], -1)
    others = slots.masked_fill(_at_an_end(slots, first, stop, sink, window), -1)
    every = torch.cat([ends, others], -1)
    order = (every < 0).sort(dim=-1, stable=True).indices[..., :k]
    return pad(every.gather(-1, order), (0, k - order.shape[-1]), value=-1)


def _ends(first: Tensor, stop: Tensor, sink: int, window: int, width: int) -> Tensor:
    """The first `sink` slots, then the newest `window`, newest first: `width` of them, -1 for none."""
    place = torch.arange(width, device=stop.device)
    ends = torch.where(place < sink, first + place, stop - 1 - (place - sink))
    there = (ends >= first + sink * (place >= sink)) & (ends < stop) & (place < sink + window)
    return ends.masked_fill(~there, -1)


def _at_an_end(slots: Tensor, first: Tensor, stop: Tensor, sink: int, window: int) -> Tensor:
    return (slots < first + sink) | (slots >= stop - window)
