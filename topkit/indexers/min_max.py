# pyright: strict, reportUnknownMemberType=false
"""Keys in four bits between the least and the largest number of each, as estimates of a key's score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.scored import Codes, Scored, ScoredIndex
from topkit.kernels.codes import LARGEST, PACKED_BITS, pack
from topkit.kernels.score import score_codes

_LAST = (1 << PACKED_BITS["int4"]) - 1
_MIDDLE = LARGEST["int4"] - 0.5  # the code that stands for the middle


class MinMax(Scored):
    """Four bits a dimension: code f stands for low + f (high - low) / 15."""

    def encode(self, keys: Tensor, step: Step) -> Codes:
        keys = keys.detach().float()
        low, high = keys.amin(-1, keepdim=True), keys.amax(-1, keepdim=True)
        # A key of equal numbers still has a scale.
        scale = ((high - low) / torch.full_like(low, _LAST)).clamp_min(2.0**-126)
        codes = ((keys - low) / scale).round_().clamp_(0, _LAST).to(torch.uint8)
        return {"codes": pack(codes, 4), "scale": scale, "middle": low + _MIDDLE * scale}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        how: dict[str, Any] = {"dtype": "int4", "scale": codes["scale"], "backend": "torch"}
        scores = score_codes(queries, codes["codes"], **how)
        middle = codes["middle"].repeat_interleave(queries.shape[1] // codes["middle"].shape[1], 1)
        return scores + queries.float().sum(-1, keepdim=True) * middle.mT


def estimates(index: ScoredIndex, queries: Tensor, slots: Tensor, step: Step) -> Tensor:
    """The scores [B, Hq, Tq, n] that an index's codes give to chosen slots [B, Hq, Tq, n]; -inf for -1."""
    rows, heads, count, width = slots.shape
    group = heads // next(iter(index.earliest.values())).shape[1]
    lists = slots.clamp_min(0).reshape(rows, heads // group, -1)
    own: Codes = {}
    for name, code in index.of_slots(lists).items():
        each = code.view(rows, heads, count, width, -1).movedim(2, 1)
        own[name] = each.reshape(rows * count, heads, width, code.shape[-1])
    vectors = queries.movedim(2, 1).reshape(rows * count, heads, 1, -1)
    scores = index.recipe.score(vectors, own, step)
    return scores.view(rows, count, heads, width).movedim(1, 2).masked_fill(slots < 0, -torch.inf)
