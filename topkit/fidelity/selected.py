"""What is read of a selection: the exact scores of the keys it chose, and attention's output over them."""

# pyright: strict
from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from topkit.fidelity.ties import NEVER
from topkit.fidelity.truth import Truth
from topkit.kernels.gather_attention import attend, gather_scores, queries_at_a_time


class PseudoKeys(Protocol):
    """What stands for the keys that were left out; an indexer's Rest is one."""

    @property
    def values(self) -> Tensor: ...
    @property
    def logits(self) -> Tensor | None: ...
    @property
    def share(self) -> Tensor | None: ...


class Selected(Protocol):
    """What is read of a selection; an indexer's Selection is one."""

    @property
    def indices(self) -> Tensor: ...
    @property
    def log_weights(self) -> Tensor | None: ...
    @property
    def rest(self) -> PseudoKeys | None: ...


def attended(
    exact: Truth,
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    selection: Selected,
    scores: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The exact scores of the chosen keys [B, Hq, Tq, w], and the output over them, some queries at a time."""
    indices, rest = selection.indices, selection.rest
    if scores is not None and values is None:
        return _read(scores, indices), None
    assert keys is not None
    wide = max(keys.shape[-1], 0 if values is None else values.shape[-1])
    step = queries_at_a_time(indices, keys, queries.shape[1], wide)
    chosen: list[Tensor] = []
    outputs: list[Tensor] = []
    for at in range(0, queries.shape[2], step):
        span = slice(at, at + step)
        picked = indices[:, :, span]
        if scores is None:
            chosen.append(_gathered(exact, queries, keys, picked, span))
        else:
            chosen.append(_read(scores[:, :, span], picked))
        if values is None:
            continue
        options = {
            "log_weights": selection.log_weights,
            "rest_values": None if rest is None else rest.values,
            "rest_logits": None if rest is None else rest.logits,
            "rest_share": None if rest is None else rest.share,
        }
        cut: dict[str, Any] = {name: x[:, :, span] for name, x in options.items() if x is not None}
        outputs.append(attend(chosen[-1], values, picked, scaling=exact.scaling, **cut))
    return torch.cat(chosen, 2), None if values is None else torch.cat(outputs, 2)


def _gathered(exact: Truth, queries: Tensor, keys: Tensor, indices: Tensor, span: slice) -> Tensor:
    """The scores of chosen slots, added up anew, but for the best: beside it none is greater."""
    anew = gather_scores(queries[:, :, span], keys, indices)
    best = exact.scores[:, :, span, :1]
    slots = indices.repeat_interleave(anew.shape[1] // indices.shape[1], 1)
    return best.where(slots == exact.heaviest[:, :, span, None], anew.minimum(best))


def _read(scores: Tensor, indices: Tensor) -> Tensor:
    """The scores [B, Hq, Tq, w] of chosen slots [B, Hs, Tq, w], -inf where none was chosen."""
    slots = indices.repeat_interleave(scores.shape[1] // indices.shape[1], 1)
    return scores.gather(-1, slots.clamp_min(0)).masked_fill(slots < 0, NEVER)
