"""What a judge refuses: a slot that is named twice, that its query does not see, or that is one too many."""

# pyright: strict
from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError

# Elements that are written at once, some lists after the others: what a CPU's caches hold, or 256 MiB.
WRITTEN = {"cpu": 1 << 20, "cuda": 1 << 26}


def require_valid(indices: Tensor, start: Tensor, stop: Tensor, k: int | Tensor, name: str) -> None:
    """Require lists of at most k different slots that their queries see, and -1 for none.

    Shapes: indices [B, Hs, Tq, w], start [B or 1], stop [B or 1, Tq]; k of all rows, or of each [B].
    Raises: InputError that begins with `name`, with the first list that is none.
    """
    hidden = _hidden(indices, start, stop)
    count = (indices >= 0).sum(-1)
    most = of_rows(k)
    bad = hidden.any(-1) | (count > most)
    if not bad.any():
        bad = _twice(indices, int(stop.max()))
    if not bad.any():
        return
    row, head, query = place = tuple(map(int, bad.nonzero()[0]))
    first, last = (
        int(start.expand(len(indices))[row]),
        int(stop.expand(len(indices), -1)[row, query]),
    )
    if hidden[place].any():
        slot = int(indices[place][hidden[place]][0])
        what = f"slot {slot}, where its query sees the slots from {first} to {last - 1}"
    elif (count > most)[place]:
        what = f"{int(count[place])} slots, where k is {k if isinstance(k, int) else int(k[row])}"
    else:
        ordered = indices[place].sort().values
        slot = ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)][0]
        what = f"slot {int(slot)} twice"
    raise InputError(
        f"{name} chose {what}, in list {head} of query {query} of row {row}; expected at most k different "
        "slots that the query sees, and -1 for none"
    )


def of_rows(k: int | Tensor) -> int | Tensor:
    """A k of all rows, or of each [B], beside columns [B, H, Tq]."""
    return k if isinstance(k, int) else k[:, None, None]


def _hidden(indices: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Which of the chosen are not visible; -1 is none."""
    before = indices < start[:, None, None, None]
    return (before | (indices >= stop[:, None, :, None])) & (indices != -1)


def _twice(indices: Tensor, length: int) -> Tensor:
    """Which lists name a slot twice: each place is written to its slot, and is no longer there if another was.

    Quicker than sorting. Shapes: indices [B, Hs, Tq, w] less than `length` -> [B, Hs, Tq].
    """
    lists = indices.flatten(0, 2)
    places = torch.arange(lists.shape[1], dtype=torch.int32, device=lists.device)
    twice: list[Tensor] = []
    step = max(1, WRITTEN[lists.device.type] // (length + 1))
    for first in range(0, len(lists), step):
        part = lists[first : first + step]
        valid = part >= 0
        slots = torch.where(valid, part, length)
        written = places.new_empty(len(part), length + 1)
        written.scatter_(1, slots, places.expand_as(part))
        twice.append(((written.gather(1, slots) != places) & valid).any(-1))
    return torch.cat(twice).view(indices.shape[:-1]) if twice else (indices >= 0).any(-1)
