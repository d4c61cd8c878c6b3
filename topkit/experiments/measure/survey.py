"""Traits of a capture: what its keys and attention weights are like, by layer and group of heads."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
# (torch's norms come without types.)
from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.measure.measure import opened
from topkit.experiments.runs.parts import write_whole
from topkit.kernels.checks import at_least_one
from topkit.kernels.precision import full_precision

# In the order of the table; docs/survey.md has each by formula.
TRAITS = (
    "first_weight",
    "sink_weight",
    "entropy",
    "support",
    "offset",
    "outliers",
    "outliers_centred",
    "sink_cosine",
)
# Scores of one block of queries, at most.
_BLOCK = 1 << 24

Row = dict[str, Any]


@dataclass(frozen=True)
class Survey:
    """The traits, a row a layer and group: the mean over samples, None where there is none.

    sink: the number of first slots whose weight `sink_weight` is.
    """

    rows: tuple[Row, ...]
    sink: int

    def by_layer(self) -> list[Row]:
        """A row a layer: means over its groups."""
        layers = dict.fromkeys(row["layer"] for row in self.rows)
        return [_mean([row for row in self.rows if row["layer"] == n], ("layer",)) for n in layers]

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV."""
        return write_csv(self.rows, path)


def several(surveys: Mapping[str, Survey], by_layer: bool = False) -> list[Row]:
    """The rows of several captures, or their means by layer, each behind the capture's name."""
    return [
        {"capture": name, **row}
        for name, one in surveys.items()
        for row in (one.by_layer() if by_layer else one.rows)
    ]


def write_csv(rows: Sequence[Row], path: str | Path) -> Path:
    """Write rows of one or more surveys as CSV."""
    path = path_of(path, "a file to write")

    def write(to: Path) -> None:
        with open(to, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)
    return path


@full_precision()
def survey(
    capture: Capture | str | Path,
    *,
    sink: int = 4,
    layers: Sequence[int] | None = None,
    layout: str | None = None,
    scaling: float | None = None,
) -> Survey:
    """What the keys and the attention weights of a capture are like.

    layout and scaling: of dumps that are files, as `measure` has them.
    Raises: InputError for what is no capture, and layers that it does not hold.
    """
    sink = at_least_one("sink", sink)
    capture = opened(capture, layout, scaling, verify=False)
    wanted = capture.layers if layers is None else list(dict.fromkeys(layers))
    unknown = [layer for layer in wanted if layer not in capture.layers]
    if unknown or not wanted:
        raise InputError(f"the capture has no layer {unknown}; layers: {capture.layers}")
    rows: list[Row] = []
    for layer in wanted:
        samples = [traits(capture.load(sample, layer), sink) for sample in capture.samples]
        rows += [_mean(group, ("layer", "group")) for group in zip(*samples, strict=True)]
    return Survey(tuple(rows), sink)


def traits(tensors: LayerTensors, sink: int) -> list[Row]:
    """The traits of one layer over one sample, a row a group of heads that share keys."""
    tensors.require_attention("a survey")
    keys, heads = tensors.keys[0].float(), tensors.queries.shape[1]
    shared = heads // len(keys)
    return [
        {
            "layer": tensors.layer,
            "group": group,
            "heads": shared,
            **_of_weights(tensors, group, shared, sink),
            **_of_keys(keys[group]),
        }
        for group in range(len(keys))
    ]


def _of_weights(tensors: LayerTensors, group: int, shared: int, sink: int) -> Row:
    """Means over the rows of a group: a query position of one of its heads each."""
    keys = tensors.keys[0, group].float()
    own = slice(group * shared, (group + 1) * shared)
    queries, softmax = tensors.queries[0, own].float(), tensors.softmax.at(own)
    slots, sums = torch.arange(len(keys)), torch.zeros(4, dtype=torch.float64)
    step = max(1, _BLOCK // (shared * len(keys)))
    for block, at in zip(queries.split(step, 1), tensors.positions.split(step), strict=True):
        scores = softmax.capped(block @ keys.mT * tensors.scaling)
        weights = softmax.weights(scores.masked_fill(slots > at[:, None], -math.inf)[None])[0]
        entropy = torch.special.entr(weights).sum(-1)
        each = (weights[..., 0], weights[..., :sink].sum(-1), entropy, entropy.exp())
        sums += torch.stack([x.double().sum() for x in each])
    rows = queries.shape[0] * queries.shape[1]
    means = (sums / rows).tolist()
    return dict(zip(("first_weight", "sink_weight", "entropy", "support"), means, strict=True))


def _of_keys(keys: Tensor) -> Row:
    """Of the keys [T, D] of a group."""
    keys = keys.double()
    mean = keys.mean(0)
    centred = keys - mean
    others = keys[1:].mean(0)
    return {
        "offset": _ratio(mean.norm(), centred.square().sum(1).mean().sqrt()),
        "outliers": _widest(keys),
        "outliers_centred": _widest(centred),
        "sink_cosine": _ratio(keys[0] @ others, keys[0].norm() * others.norm()),
    }


def _widest(keys: Tensor) -> float | None:
    """The largest RMS of a channel over the median's."""
    rms = keys.square().mean(0).sqrt()
    return _ratio(rms.max(), rms.quantile(0.5))


def _ratio(one: Tensor, other: Tensor) -> float | None:
    ratio = float(one / other)
    return ratio if math.isfinite(ratio) else None


def _mean(rows: Sequence[Row], places: Sequence[str]) -> Row:
    """The mean of each trait over the rows that have it."""
    mean = {name: rows[0][name] for name in places}
    if "group" in places:
        mean["heads"] = rows[0]["heads"]
    for name in TRAITS:
        known = [row[name] for row in rows if row[name] is not None]
        mean[name] = sum(known) / len(known) if known else None
    return mean
