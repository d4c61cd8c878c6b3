"""Pages of keys by their element-wise extremes, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.kernels.score.reference import score


def append_bounds(
    keys: Tensor, low: Tensor, high: Tensor, at: Tensor, page_size: int, start: Tensor | None
) -> None:
    """As topkit.kernels.page_bounds.append_bounds."""
    rows, heads, room, width = keys.shape
    first = torch.zeros_like(at) if start is None else start
    page = ((at - first).clamp_min(0) // page_size).expand(rows)  # of rows that begin later, too
    slots = (first + page * page_size)[:, None] + torch.arange(page_size, device=keys.device)
    there = (slots <= at)[:, None, :, None]
    slots = slots.clamp(0, room - 1)[:, None, :, None].expand(-1, heads, -1, width)
    own = keys.detach().gather(2, slots)
    place = page[:, None, None, None].expand(-1, heads, 1, width)
    low.scatter_(2, place, own.masked_fill(~there, torch.inf).amin(2, keepdim=True))
    high.scatter_(2, place, own.masked_fill(~there, -torch.inf).amax(2, keepdim=True))


def score_bounds(
    queries: Tensor, low: Tensor, high: Tensor, page_size: int, start: Tensor | None, stop: Tensor
) -> Tensor:
    """As topkit.kernels.page_bounds.score_bounds."""
    queries = queries.float()
    scores = score(queries.clamp_min(0), high) + score(queries.clamp_max(0), low)
    begin = torch.arange(low.shape[2], device=low.device) * page_size
    if start is not None:
        begin = begin + start[:, None, None, None]
    return scores.masked_fill(begin >= stop[:, None, :, None], -torch.inf)
