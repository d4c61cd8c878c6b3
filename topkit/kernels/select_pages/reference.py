"""The keys of the best pages, in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.kernels.select_topk import select_topk


def select_pages(
    scores: Tensor,
    k: int,
    pages: int,
    page_size: int,
    start: Tensor | None,
    stop: Tensor,
    check: bool = True,
) -> Tensor:
    """As topkit.kernels.select_pages.select_pages, of the best `pages` pages."""
    best = select_topk(scores, pages, check=check, backend="torch")
    newest_first = torch.arange(page_size - 1, -1, -1, device=scores.device)
    slots = (best * page_size)[..., None] + newest_first
    if start is not None:
        slots = slots + start[:, None, None, None, None]
    there = (best >= 0)[..., None] & (slots < stop[:, None, :, None, None])
    slots, there = slots.flatten(-2), there.flatten(-2)
    slots = slots.masked_fill(~there, -1)
    order = (~there).sort(dim=-1, stable=True).indices[..., :k]
    return pad(slots.gather(-1, order), (0, k - order.shape[-1]), value=-1)
