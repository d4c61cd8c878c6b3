"""What a judge refuses: a slot that is named twice, that its query does not see, or that is one too many."""

# pyright: strict
from __future__ import annotations

from torch import Tensor

from topkit.errors import InputError


def require_valid(indices: Tensor, start: Tensor, stop: Tensor, k: int, name: str) -> None:
    """Require lists of at most k different slots that their queries see, and -1 for none.

    Shapes: indices [B, Hs, Tq, w], start [B or 1], stop [B or 1, Tq].
    Raises: InputError that begins with `name`, with the first list that is none.
    """
    hidden = _hidden(indices, start, stop)
    ordered = indices.sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    count = (indices >= 0).sum(-1)
    bad = hidden.any(-1) | twice.any(-1) | (count > k)
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
    elif twice[place].any():
        what = f"slot {int(ordered[place][1:][twice[place]][0])} twice"
    else:
        what = f"{int(count[place])} slots, where k is {k}"
    raise InputError(
        f"{name} chose {what}, in list {head} of query {query} of row {row}; expected at most k different "
        "slots that the query sees, and -1 for none"
    )


def _hidden(indices: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Which of the chosen are not visible; -1 is none."""
    before = indices < start[:, None, None, None]
    return (before | (indices >= stop[:, None, :, None])) & (indices != -1)
