# pyright: strict, reportUnknownMemberType=false
"""The attention mass of the first n keys of an order, estimated by a curve through samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.exact import chosen_scores

# Where the curve is sampled, as shares of the order (arXiv 2502.12216, section 4).
_NEAR, _FAR = 0.1, 0.6


@dataclass(frozen=True)
class Curve:
    """Exact weights for the first `share` of an order, at most `most`, and a / x + b behind them.

    The curve goes through the mean weights of `sample` keys at two places.
    """

    sample: int
    most: int
    share: float

    def needed(
        self, queries: Tensor, order: Tensor, seen: Tensor, mass: float, step: Step
    ) -> tuple[Tensor, Tensor]:
        """The fewest first places of an order that hold a share of its weights, and how many keys were read.

        Shapes: order [B, Hq, Tq, T], slots of which the first `seen` [B or 1, Tq] count -> [B, Hq, Tq, T]
        bool, the first always true where there is one; [B or 1, Tq].
        """
        length, device = order.shape[-1], order.device
        place = torch.arange(1, length + 1, device=device)
        count = seen[:, None, :, None]
        first = (seen.double() * self.share - 1e-9).ceil().long()[:, None, :, None]
        places = [place[: self.most].expand(*count.shape[:3], -1), *self._windows(count, length)]
        scores = self._exact(queries, order, places, step)
        there = [p <= count for p in places]
        there[0] = there[0] & (places[0] <= first)
        # One scale for all: the largest weight that is known is 1.
        known = torch.cat(
            [s.masked_fill(~t, -torch.inf) for s, t in zip(scores, there, strict=True)], -1
        )
        top = known.amax(-1, keepdim=True)
        weights = [(s - top).exp() * t for s, t in zip(scores, there, strict=True)]
        curve = _through(places[1:], weights[1:], there[1:], place)
        curve[..., : self.most] = torch.where(there[0], weights[0], curve[..., : self.most])
        curve = curve.masked_fill(place > count, 0)
        held = curve.cumsum(-1)
        keep = (held - curve < mass * held[..., -1:]) & (place <= count)
        keep[..., :1] = count > 0
        return keep, self._read(places, there, place)

    def _windows(self, count: Tensor, length: int) -> list[Tensor]:
        """The places of the two samples [B or 1, 1, Tq, w]; those beyond `count` are none."""
        width = min(self.sample, length)
        windows: list[Tensor] = []
        for share in (_NEAR, _FAR):
            begin = (count * share).round().long() - width // 2
            begin = torch.minimum(begin, count - width + 1).clamp_min(1)
            windows.append(begin + torch.arange(width, device=count.device))
        return windows

    def _exact(
        self, queries: Tensor, order: Tensor, places: list[Tensor], step: Step
    ) -> list[Tensor]:
        """The scaled scores [B, Hq, Tq, n] of the keys at each of some places."""
        length, sizes = order.shape[-1], [p.shape[-1] for p in places]
        at = torch.cat([p.expand(*places[1].shape[:3], -1) for p in places], -1)
        at = (at.clamp_max(length) - 1).expand(*order.shape[:3], -1)
        scores = chosen_scores(queries, order.gather(-1, at), step, length)
        scores = step.scaling * step.capped(scores)
        return list(cast(Sequence[Tensor], scores.split(sizes, -1)))

    def _read(self, places: list[Tensor], there: list[Tensor], place: Tensor) -> Tensor:
        """How many keys stand at some places, each counted once [B or 1, Tq]."""
        read = torch.zeros(*places[1].shape[:3], len(place) + 1, device=place.device)
        for some, real in zip(places, there, strict=True):
            read.scatter_(-1, some.where(real, 0).expand(*read.shape[:3], -1), 1.0)
        return read[..., 1:].sum(-1)[:, 0]


def _through(
    places: list[Tensor], weights: list[Tensor], there: list[Tensor], place: Tensor
) -> Tensor:
    """a / x + b at each place x, through the mean weights of two samples; it falls, and is never negative."""
    inverse: list[Tensor] = []
    height: list[Tensor] = []
    for some, own, real in zip(places, weights, there, strict=True):
        number = real.sum(-1, keepdim=True).clamp_min(1)
        inverse.append((real / some).sum(-1, keepdim=True) / number)
        height.append(own.sum(-1, keepdim=True) / number)
    apart = inverse[0] - inverse[1]
    slope = (height[0] - height[1]) / apart.where(apart > 0, 1)
    slope = slope.clamp_min(0).masked_fill(apart <= 0, 0)
    level = ((height[0] + height[1] - slope * (inverse[0] + inverse[1])) / 2).clamp_min(0)
    return slope / place + level
