"""Metrics of a selection: everything follows from the exact scores of the keys it chose."""

# pyright: strict
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.fidelity.selected import Selected, attended
from topkit.fidelity.ties import NEVER, hits
from topkit.fidelity.truth import Truth, UnitTruth, log_mean, unit_rounding
from topkit.fidelity.validity import of_rows, require_valid
from topkit.kernels.precision import full_precision

NAN = math.nan


@dataclass(frozen=True)
class Metric:
    """What a column says; better is "higher", "lower" or "" where neither is."""

    meaning: str
    better: str = ""
    unit: str = ""


METRICS: dict[str, Metric] = {
    "kept": Metric("valid slots chosen", unit="keys"),
    "recall": Metric(
        "share of the exact Top-k chosen, ties forgiven, missing slots missed", "higher"
    ),
    "own_recall": Metric("the same against the Top-kept: for adaptive methods", "higher"),
    "mass": Metric("attention weight of the keys chosen", "higher"),
    "mass_ratio": Metric("mass over the exact Top-k's", "higher"),
    "mass_estimate": Metric("the mass that a weighted selection stands for; may pass 1"),
    "top1": Metric("the heaviest key was chosen", "higher"),
    "output_error": Metric("relative L2 error of the attention output", "lower"),
    "score_regret": Metric("mean shortfall of the sorted scaled scores", "lower", "nats"),
    "entropy": Metric("entropy of the dense row", unit="nats"),
    "support": Metric("exp of the entropy", unit="keys"),
}


@full_precision()
def judge(
    exact: Truth,
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    selection: Selected,
    k: int | Tensor,
    *,
    scores: Tensor | None = None,
    output: Tensor | None = None,
    name: str = "the selection",
) -> dict[str, Tensor]:
    """The metrics of a selection for each query head, against that head's own Top-k.

    Shapes: as `truth`; selection.indices [B, Hs, Tq, w] with -1 for none, its log_weights and rest
    as attention would apply them; k of all rows, or of each [B]; scores [B, Hq, Tq, T], all dot products
    where they are known already, of which the chosen are read, and output [B, Hq, Tq, Dv], attention's
    over the selection, where it is: keys and values are then not read -> columns [B, Hq, Tq], NaN where a
    metric has no meaning; beside METRICS, visible and trivial (k >= visible, to be left out of averages).
    Raises: InputError that begins with `name`, for a slot that is chosen twice or not visible, and for
    more than k.
    Definitions: docs/metrics.md.
    """
    require_valid(selection.indices, exact.start, exact.stop, k, name)
    chosen, sparse = attended(
        exact, queries, keys, values if output is None else None, selection, scores
    )
    visible, most = exact.visible[:, None].expand_as(exact.total), of_rows(k)
    wanted = visible.clamp(max=most)
    kept = (selection.indices >= 0).sum(-1).repeat_interleave(_share(queries, selection), 1)
    own, off = kept.minimum(visible), exact.rounding.at(selection.indices)
    weights = exact.log_weights(chosen).exp()
    mass = weights.sum(-1).clamp_max(1)
    best = exact.log_weights(exact.scores[..., : k if isinstance(k, int) else None]).exp()
    return {
        "visible": visible,
        "kept": kept,
        "trivial": visible <= most,
        "recall": _share_of(hits(chosen, off, exact.floors, wanted), wanted),
        "own_recall": _share_of(hits(chosen, off, exact.floors, own), own),
        "mass": mass,
        "mass_ratio": _ratio(mass, _first(best, wanted).sum(-1)),
        "mass_estimate": _estimate(mass, weights, exact, selection),
        "top1": hits(chosen, off, exact.floors, torch.ones_like(wanted)).float(),
        "output_error": _output_error(exact, sparse if output is None else output),
        "score_regret": _regret(chosen, exact, kept.minimum(wanted)),
        "entropy": exact.entropy,
        "support": exact.entropy.exp(),
    }


@full_precision()
def judge_units(
    exact: Truth,
    units: UnitTruth,
    queries: Tensor,
    keys: Tensor | None,
    selection: Selected,
    k: int | Tensor,
    *,
    scores: Tensor | None = None,
    name: str = "the selection",
) -> dict[str, Tensor]:
    """The metrics of a shared selection, once a unit, against the Top-k of its heads' mean weights.

    Shapes: as `judge` -> columns [B, Hs, Tq]; what has no meaning for a unit is NaN.
    Raises: as `judge`.
    Definitions: docs/metrics.md.
    """
    require_valid(selection.indices, exact.start, exact.stop, k, name)
    chosen, _ = attended(exact, queries, keys, None, selection, scores)
    valid = selection.indices >= 0
    logs = log_mean(exact.log_weights(chosen), units.weights.shape[1]).masked_fill(~valid, NEVER)
    visible, most = exact.visible[:, None].expand(logs.shape[:-1]), of_rows(k)
    wanted, kept = visible.clamp(max=most), valid.sum(-1)
    own, off = kept.minimum(visible), unit_rounding(exact, selection.indices)
    mass = logs.exp().sum(-1).clamp_max(1)
    nothing = torch.full_like(mass, NAN)
    columns = {
        "visible": visible,
        "kept": kept,
        "trivial": visible <= most,
        "recall": _share_of(hits(logs, off, units.floors, wanted), wanted),
        "own_recall": _share_of(hits(logs, off, units.floors, own), own),
        "mass": mass,
        "mass_ratio": _ratio(mass, _first(units.weights.exp(), wanted).sum(-1)),
        "top1": hits(logs, off, units.floors, torch.ones_like(wanted)).float(),
    }
    return {name: columns.get(name, nothing) for name in ("visible", "trivial", *METRICS)}


@full_precision()
def overlap(indices: Tensor, reference: Tensor) -> Tensor:
    """The share of another selection's keys that this one chose too [B, Hq or Hs, Tq].

    Shapes: indices [B, Hs, Tq, w], reference [B, Hr, Tq, r]; the finer of the two is kept.
    """
    heads = max(indices.shape[1], reference.shape[1])
    ours = indices.repeat_interleave(heads // indices.shape[1], 1)
    theirs = reference.repeat_interleave(heads // reference.shape[1], 1)
    ours = ours.sort(-1).values
    place = torch.searchsorted(ours, theirs.contiguous()).clamp_max(ours.shape[-1] - 1)
    hit = (ours.gather(-1, place) == theirs) & (theirs >= 0)
    return hit.sum(-1) / (theirs >= 0).sum(-1)


def _share(queries: Tensor, selection: Selected) -> int:
    return queries.shape[1] // selection.indices.shape[1]


def _first(sorted_values: Tensor, count: Tensor) -> Tensor:
    """The first `count` of each row, the others zero."""
    place = torch.arange(sorted_values.shape[-1], device=sorted_values.device)
    return sorted_values.masked_fill(place >= count[..., None], 0.0)


def _share_of(hits: Tensor, wanted: Tensor) -> Tensor:
    return (hits / wanted).masked_fill(wanted == 0, NAN)


def _ratio(mass: Tensor, best: Tensor) -> Tensor:
    # A mass of the best that rounding made the smaller is as good as this one.
    return (mass / best).clamp_max(1)


def _regret(chosen: Tensor, exact: Truth, count: Tensor) -> Tensor:
    ours = chosen.sort(-1, descending=True).values
    width = min(ours.shape[-1], exact.scores.shape[-1])
    place = torch.arange(width, device=chosen.device)
    short = (exact.scores[..., :width] - ours[..., :width]).masked_fill(
        place >= count[..., None], 0.0
    )
    return (exact.scaling * short.sum(-1) / count).masked_fill(count == 0, NAN)


def _estimate(mass: Tensor, weights: Tensor, exact: Truth, selection: Selected) -> Tensor:
    rest = selection.rest
    logits = None if rest is None else rest.logits
    if selection.log_weights is None and logits is None:
        return torch.full_like(mass, NAN)
    total = mass
    if selection.log_weights is not None:
        factor = selection.log_weights.exp()
        total = (weights * factor.repeat_interleave(weights.shape[1] // factor.shape[1], 1)).sum(-1)
    if logits is not None:
        total = total + (logits.float() - exact.lse[..., None]).exp().sum(-1)
    return total


def _output_error(exact: Truth, sparse: Tensor | None) -> Tensor:
    if sparse is None or exact.output is None:
        return torch.full_like(exact.lse, NAN)
    dense = _length(exact.output)
    return (_length(sparse - exact.output) / dense).masked_fill(dense == 0, NAN)


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1)  # pyright: ignore (torch says no type)
