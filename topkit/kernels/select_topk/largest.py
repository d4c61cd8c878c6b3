"""The largest numbers of rows, on a CPU found among few: those of the groups with the largest maxima."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

# Numbers from which the maxima of groups cost less than a search of all.
MANY = 1 << 14
# Numbers of a group: at most this many, and so few that the candidates are a quarter of the row.
WIDEST, NARROWEST = 16, 4


def largest(scores: Tensor, k: int, *, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest numbers [..., k] of rows [..., T], and their places: what `Tensor.topk` gives.

    A row's k largest stand in the k groups whose maxima are largest, since each of those has one that is no
    less than all of any other group, and maxima cost little beside a search. Among equals the choice is
    arbitrary, and NaN is largest, as there.
    """
    width = _width(scores, k)
    if width < NARROWEST:
        return scores.topk(k, dim=-1, sorted=sorted)
    length = scores.shape[-1]
    groups = length // width
    # A group's members stand `groups` apart: maxima of whole rows of memory, not of neighbours in one.
    by_member = torch.unflatten(scores[..., : groups * width], -1, (width, groups))
    maxima = by_member.amax(-2)
    group = maxima.topk(k, dim=-1, sorted=False).indices
    member = groups * torch.arange(width, device=scores.device)[:, None]
    places = (group[..., None, :] + member).flatten(-2)
    if groups * width < length:  # what is in no group
        rest = torch.arange(groups * width, length, device=scores.device)
        places = torch.cat([places, rest.expand(*places.shape[:-1], -1)], -1)
    values, found = scores.gather(-1, places).topk(k, dim=-1, sorted=sorted)
    return values, places.gather(-1, found)


def _width(scores: Tensor, k: int) -> int:
    """Numbers of a group, a power of two; 1 where a search of all is no dearer."""
    if scores.device.type != "cpu" or scores.numel() < MANY:
        return 1
    return min(WIDEST, 1 << max(0, (scores.shape[-1] // (4 * k)).bit_length() - 1))
