"""The rows of the study lightning-precision, gathered: means over samples, and a precision's loss in its parts."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topkit.documents import Whole, read_json
from topkit.errors import InputError
from topkit.experiments.measure.summary import interval_of_sums
from topkit.experiments.study.precision import MEANS, SUMMED, plain
from topkit.indexers.base import Indexer
from topkit.indexers.spec import recorded

_MEAN = float | None
PART = {
    "title": str,
    "sample": Whole(),
    "rows": [
        {"layer": Whole(), "indexer": str, "budget": str, "k": Whole(), **dict.fromkeys(MEANS, _MEAN)}
    ],
}  # fmt: skip
REMEDY = "delete it, and run the study again"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Loss:
    """What is missing of the heads' own Top-k, in parts that add up: each the fall of precision by one step.

    sharing: one list for all heads, their common one; scoring: the indexer's list in float32 for that one;
    quantisation: the same indexer's list in low precision.
    """

    sharing: float
    scoring: float
    quantisation: float


@dataclass(frozen=True)
class Gathered:
    """The rows of one setting: a mean of each sample [S, L] by indexer, budget and name of MEANS."""

    title: str
    text: bool
    layers: tuple[int, ...]
    values: Mapping[tuple[str, str, str], Array]

    @cached_property
    def indexers(self) -> list[Indexer]:
        return [recorded(name) for name in dict.fromkeys(name for name, _, _ in self.values)]

    @cached_property
    def budgets(self) -> list[str]:
        return list(dict.fromkeys(budget for _, budget, _ in self.values))

    def has(self, indexer: Indexer, budget: str) -> bool:
        return (repr(indexer), budget, "own") in self.values

    def by_layer(self, indexer: Indexer, budget: str, name: str) -> Array:
        """The means over samples [L]."""
        return self.values[repr(indexer), budget, name].mean(0)

    def mean(self, indexer: Indexer, budget: str, name: str) -> float:
        return float(self.by_layer(indexer, budget, name).mean())

    def interval(self, indexer: Indexer, budget: str, name: str) -> tuple[float | None, float | None]:  # fmt: skip
        """Student's, over samples; none of one."""
        each = self.values[repr(indexer), budget, name].mean(1)
        return interval_of_sums(each, np.ones(len(each)))

    def worst(self, indexer: Indexer, budget: str) -> tuple[int, float]:
        """The layer whose common list is found least, and how much of it."""
        its = self.by_layer(indexer, budget, "summed")
        place = int(its.argmin())
        return self.layers[place], float(its[place])

    def loss(self, indexer: Indexer, budget: str) -> Loss | None:
        """A lightning indexer's loss in its parts; None where its parts were not run."""
        twin = plain(indexer)
        if twin is None or not (self.has(SUMMED, budget) and self.has(twin, budget)):
            return None
        common, scored, own = (self.mean(x, budget, "own") for x in (SUMMED, twin, indexer))
        return Loss(1 - common, common - scored, scored - own)


def gathered(folder: Path, settings: Sequence[Mapping[str, Any]]) -> list[Gathered]:
    """The settings of a study's folder; those of which no sample is there yet are left out.

    Raises: InputError for a part that cannot be read, and where no sample is there.
    """
    made: list[Gathered] = []
    for setting in settings:
        paths = [folder / name for name in setting["parts"]]
        parts = [read_json(path, PART, REMEDY) for path in paths if path.exists()]
        if parts:
            made.append(_of_parts(setting, parts))
    if not made:
        raise InputError(f"{folder} holds no rows of a study; run it first")
    return made


def _of_parts(setting: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Gathered:
    layers = sorted({row["layer"] for part in parts for row in part["rows"]})
    each: dict[tuple[str, str, str], Array] = {}
    for number, part in enumerate(parts):
        for row in part["rows"]:
            for name in MEANS:
                place = row["indexer"], row["budget"], name
                here = each.setdefault(place, np.full((len(parts), len(layers)), np.nan))
                value = row[name]
                here[number, layers.index(row["layer"])] = np.nan if value is None else value
    return Gathered(setting["title"], bool(setting["text"]), tuple(layers), each)
