"""What a selection leaves of one key that the answer needs: found or missed, and its weight before and after."""

# pyright: strict
from __future__ import annotations

import torch
from torch import Tensor

from topkit.fidelity.metrics import NAN, Metric
from topkit.fidelity.selected import Selected, attended
from topkit.fidelity.ties import NEVER
from topkit.fidelity.truth import Truth
from topkit.kernels.precision import full_precision

ANSWER_KEY: dict[str, Metric] = {
    "hit": Metric("the answer's key was chosen", "higher"),
    "w": Metric("its weight under full attention"),
    "ws": Metric("its weight in the softmax over what was chosen; 0 where it was missed", "higher"),
}
# Sums of weights below this are added up anew, by their logarithms.
TINY = 1e-30


@full_precision()
def answer_key(
    exact: Truth,
    queries: Tensor,
    keys: Tensor | None,
    selection: Selected,
    slots: Tensor,
    *,
    scores: Tensor | None = None,
    sinks: Tensor | None = None,
    weighed: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """ANSWER_KEY of each query head, for the slot [B, Tq] that each query is to find, -1 for none.

    Shapes: as `judge`, which has required the selection to be valid; sinks [B, Hq, Tq], logits of no key, which
    `exact` counts already; weighed: mass and mass_estimate as `judge` gives them, with which the chosen keys are
    not read again -> columns [B, Hq, Tq], NaN where there is no slot.
    Definitions: docs/metrics.md.
    """
    none = (slots < 0)[:, None]
    wanted = slots.clamp_min(0)[:, None, :, None]
    if scores is not None:
        own = scores.gather(-1, wanted.expand(*scores.shape[:3], 1))
    else:
        assert keys is not None
        own = _scores_of(queries, keys, slots.clamp_min(0))
    log_weight = exact.log_weights(own)[..., 0]
    heads = queries.shape[1]
    found = selection.indices == wanted
    hit = _by_head(found.any(-1), heads)
    factor = log_weight
    if selection.log_weights is not None:
        factor = factor + _by_head(
            selection.log_weights.masked_fill(~found, 0.0).sum(-1, dtype=torch.float32), heads
        )
    whole = None if weighed is None else _sum_of(exact, *weighed, sinks)
    if whole is None or bool(((whole < TINY) & hit & ~none).any()):
        kept = (factor - _log_sum(exact, queries, keys, selection, scores, sinks)).exp()
    else:
        kept = factor.exp() / whole
    rest = selection.rest
    if rest is not None and rest.share is not None:
        kept = kept * (1 - rest.share.sum(-1))
    columns = {
        "hit": hit.float(),
        "w": log_weight.exp(),
        "ws": kept.clamp_max(1).masked_fill(~hit, 0.0),
    }
    return {name: x.masked_fill(none, NAN) for name, x in columns.items()}


def of_units(columns: dict[str, Tensor], units: int) -> dict[str, Tensor]:
    """The columns of lists that heads share: the means over these [B, Hs, Tq]."""
    shape = (units, -1)
    return {n: x.reshape(len(x), *shape, x.shape[2]).mean(2) for n, x in columns.items()}


def _sum_of(exact: Truth, mass: Tensor, estimate: Tensor, sinks: Tensor | None) -> Tensor:
    """All weights of the softmax over what was chosen, as shares of the dense one's."""
    whole = mass.where(estimate.isnan(), estimate)
    return whole if sinks is None else whole + (sinks.float() - exact.lse).exp()


def _log_sum(
    exact: Truth,
    queries: Tensor,
    keys: Tensor | None,
    selection: Selected,
    scores: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """The logarithm of the same, from the chosen keys' scores."""
    chosen, _ = attended(exact, queries, keys, None, selection, scores)
    logs, rest = exact.log_weights(chosen), selection.rest
    if selection.log_weights is not None:
        logs = logs + _by_head(selection.log_weights, queries.shape[1])
        logs = logs.masked_fill(chosen == NEVER, NEVER)
    if rest is not None and rest.logits is not None:
        logs = torch.cat([logs, rest.logits.float() - exact.lse[..., None]], -1)
    if sinks is not None:
        logs = torch.cat([logs, (sinks.float() - exact.lse)[..., None]], -1)
    return logs.logsumexp(-1)


def _scores_of(queries: Tensor, keys: Tensor, slots: Tensor) -> Tensor:
    """The dot products [B, Hq, Tq, 1] of queries with the keys of their slots."""
    place = slots[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
    own = keys.expand(len(queries), -1, -1, -1).gather(2, place).float()
    return (queries.float() * _by_head(own, queries.shape[1])).sum(-1, keepdim=True)


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)
