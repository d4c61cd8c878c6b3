"""A list of keys compared with another of the same queries, by the scores that the other was made of."""

# pyright: strict
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """What the baseline's scores [1, H, n, T] say of its own lists: last and next best, and the sum of weights.

    Shapes: [1, H, n]; weights are the softmax of the scores.
    """

    every: Tensor
    last: Tensor
    next: Tensor
    lse: Tensor

    @classmethod
    def of(cls, scores: Tensor, own: Tensor) -> Scores:
        """Of scores that are -inf where a query does not see the slot, and the lists [1, H, n, w] by them."""
        count = (own >= 0).sum(-1, keepdim=True)
        width = min(own.shape[-1] + 1, scores.shape[-1])
        best = scores.topk(width, -1).values
        last = best.gather(-1, (count - 1).clamp_min(0))[..., 0]
        after = best.gather(-1, count.clamp_max(width - 1))[..., 0]
        after = after.masked_fill(count[..., 0] >= width, -torch.inf)
        return cls(scores, last, after, scores.logsumexp(-1))

    @property
    def tied(self) -> Tensor:
        """Whether the last key of a list and the first that is not in it score the same [1, H, n]."""
        return (self.last == self.next) & self.last.isfinite()

    def at(self, slots: Tensor) -> Tensor:
        """The scores of slots [1, Ho, n, w], Ho a multiple of H; -inf for -1."""
        each = self._by_list(slots.clamp_min(0))
        every = self.every[:, :, None].expand(*each.shape[:4], -1)
        return every.gather(-1, each).flatten(1, 2).masked_fill(slots < 0, -torch.inf)

    def mass(self, slots: Tensor) -> Tensor:
        """The weights of the keys of lists [1, Ho, n, w], together [1, Ho, n]."""
        return (self.at(slots) - spread(self.lse, slots.shape[1])[..., None]).exp().sum(-1)

    def _by_list(self, slots: Tensor) -> Tensor:
        return torch.unflatten(slots, 1, (self.every.shape[1], -1))


class Compared(NamedTuple):
    """Of each list [1, H, n]: recall of the baseline's, whether it is another set, the keys of both; H the finer.

    recall is NaN where the baseline lists nothing.
    """

    recall: Tensor
    changed: Tensor
    own_keys: Tensor
    keys: Tensor


def compared(own: Tensor, other: Tensor, scores: Scores | None) -> Compared:
    """Lists [1, Ho, n, w] compared with the baseline's own [1, H, n, w].

    Where scores are known, a key that scores no lower than the last of the baseline's list counts as one of it.
    """
    heads = max(own.shape[1], other.shape[1])
    own, other = spread(own, heads), spread(other, heads)
    shared, size = _within(other, own), (own >= 0).sum(-1)
    same = shared.sum(-1)
    hits = same
    if scores is not None:
        as_good = scores.at(other) >= spread(scores.last, heads)[..., None]
        hits = (shared | as_good & (other >= 0)).sum(-1).minimum(size)
    recall = (hits / size).masked_fill(size == 0, torch.nan)
    keys = (other >= 0).sum(-1)
    return Compared(recall, (same < size) | (keys != size), size, keys)


def spread(x: Tensor, heads: int) -> Tensor:
    """What is of each list [1, H, ...], of each of more heads."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def _within(slots: Tensor, lists: Tensor) -> Tensor:
    """Which of the slots [..., w] are in the lists [..., v]; -1 is in none."""
    lists = lists.sort(-1).values
    place = torch.searchsorted(lists, slots.contiguous()).clamp_max(lists.shape[-1] - 1)
    return (lists.gather(-1, place) == slots) & (slots >= 0)
