"""The hand-written baseline: topkit's columns for codes of one layer, in plain torch.

The baseline of `topkit bench measure`: no padding, no checks, no tolerance for ties, every score in
memory at once. The queries are of the newest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Scores = Callable[[Tensor, Tensor], Tensor]


def int8_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Scores [B, Hk, G, T] of grouped queries against keys [B, Hk, T, D] rounded to int8, a scale a key."""
    scale = keys.abs().amax(-1, keepdim=True) / 127
    codes = (keys / scale).round().clamp(-127, 127).to(torch.int8)
    return (queries @ codes.float().mT) * scale.mT


def sign_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """The same against the signs of the keys."""
    return queries @ torch.where(keys >= 0, 1.0, -1.0).mT


def measured(
    queries: Tensor, keys: Tensor, values: Tensor, approximate: Scores, ks: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Columns [B, Hq, Tq] at each budget.

    Shapes: queries [B, Hq, Tq, D], keys [B, Hk, T, D], values [B, Hk, T, Dv].
    """
    (_, heads, count, dim), (groups, length) = queries.shape, keys.shape[1:3]
    scaling = dim**-0.5
    grouped = queries.unflatten(1, (groups, -1)).flatten(2, 3)
    stops = torch.arange(length - count + 1, length + 1).repeat(heads // groups)
    hidden = torch.arange(length) >= stops[:, None]

    scores = (grouped @ keys.mT).masked_fill_(hidden, -torch.inf)
    best = scores.topk(max(ks)).values
    lse = (scores * scaling).logsumexp(-1)
    weights = (scores * scaling - lse[..., None]).exp_()
    dense = weights @ values
    entropy = lse - scaling * (weights * scores.masked_fill(hidden, 0.0)).sum(-1)
    order = approximate(grouped, keys).masked_fill_(hidden, -torch.inf).topk(max(ks)).indices
    exact = scores.gather(-1, order)

    columns = []
    for k in ks:
        chosen, slots = exact[..., :k], order[..., :k]
        kept = (chosen * scaling - lse[..., None]).exp()
        mass = kept.sum(-1)
        picked = torch.stack([
            value[slot.flatten()].view(*slot.shape, -1)
            for value, slot in zip(values.flatten(0, 1), slots.flatten(0, 1), strict=True)
        ]).view(*slots.shape, -1)  # fmt: skip
        output = (kept[..., None] * picked).sum(-2) / mass[..., None]
        ordered = chosen.sort(-1, descending=True).values
        rows = {
            "recall": (chosen >= best[..., k - 1 : k]).float().mean(-1),
            "mass": mass,
            "mass_ratio": mass / (best[..., :k] * scaling - lse[..., None]).exp().sum(-1),
            "top1": (chosen.amax(-1) >= best[..., 0]).float(),
            "output_error": (output - dense).norm(dim=-1) / dense.norm(dim=-1),
            "score_regret": scaling * (best[..., :k] - ordered).mean(-1),
            "entropy": entropy,
            "support": entropy.exp(),
        }
        shape = (len(queries), heads, count)
        columns.append({name: row.reshape(shape) for name, row in rows.items()})
    return columns
