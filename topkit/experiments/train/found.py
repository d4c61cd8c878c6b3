"""What the jobs of a study that trains found, by start: paired by seed, as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topkit.documents import check
from topkit.errors import InputError
from topkit.experiments.study import stats
from topkit.experiments.study.ranks import holm
from topkit.experiments.study.stats import Array, Interval
from topkit.experiments.train.arms import BEFORE, DENSE, PARTS, TOPK, Arm

_PART = {"arm": {"start": str, "folder": str, "attention": str, "ratio": str, "seed": int}}
_REMEDY = "delete it, and the study makes it anew"


@dataclass(frozen=True)
class Start:
    """The models of one start: how it was before, and by attention (dense, or a ratio) a model a seed.

    absent: models that are not there yet.
    """

    name: str
    models: Mapping[str, Sequence[Mapping[str, Any]]]
    absent: Sequence[str] = field(default_factory=list[str])

    @property
    def trained(self) -> list[str]:
        """Dense first, then the ratios in their order."""
        return [arm for arm in self.models if arm != BEFORE]

    @property
    def ratios(self) -> list[str]:
        return [arm for arm in self.trained if arm != DENSE]

    def titles(self, what: str) -> list[str]:
        """The tasks of curves or of heads."""
        return [one["title"] for one in self.models[BEFORE][0][what]]

    def curve(self, arm: str, task: int) -> tuple[list[str], Array, Array]:
        """Cells, and rates [models, cells, haystacks], with the questions [haystacks], of a task."""
        curves = [model["curves"][task] for model in self.models[arm]]
        rates = np.array([curve["rates"] for curve in curves], dtype=float)
        return curves[0]["cells"], rates, np.array(curves[0]["questions"], dtype=float)

    def heads(self, arm: str, task: int, measure: str) -> Array:
        """A measure [models, haystacks, layers, heads] of a task."""
        found = [model["heads"][task]["measures"][measure] for model in self.models[arm]]
        return np.array(found, dtype=float)

    def measures(self, task: int) -> list[str]:
        return list(self.models[BEFORE][0]["heads"][task]["measures"])


def starts(out: Path, study: Mapping[str, Any]) -> list[Start]:
    """What a study found, by start; of models whose seed is not whole in all attentions, nothing.

    Raises: InputError where no start has been measured.
    """
    read, absent = list[dict[str, Any]](), list[str]()
    for name in study[PARTS]:
        path = out / PARTS / name
        if path.exists():
            read.append(read_part(path))
        else:
            absent.append(name.rpartition("-")[0])
    made: list[Start] = []
    for start in dict.fromkeys(one["arm"]["start"] for one in read):
        own = [one for one in read if one["arm"]["start"] == start]
        by_arm: dict[str, dict[int, Any]] = {}
        for one in own:
            by_arm.setdefault(_arm(one["arm"]), {})[one["arm"]["seed"]] = one
        if BEFORE not in by_arm:
            continue
        trained = [seeds for arm, seeds in by_arm.items() if arm != BEFORE]
        whole = sorted(set.intersection(*(set(seeds) for seeds in trained))) if trained else []
        models = {
            arm: [seeds[seed] for seed in (whole if arm != BEFORE else seeds)]
            for arm, seeds in by_arm.items()
            if arm == BEFORE or whole
        }
        made.append(Start(start, models, absent))
    if not made:
        raise InputError(f"{out} holds a study none of whose models was measured; run it first")
    return made


def read_part(path: Path) -> dict[str, Any]:
    """What a job found of its model. Raises: InputError for a file that no job wrote, or half of one."""
    try:
        part: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}; {_REMEDY}") from error
    # What was found may hold NaN, which `check` refuses.
    check({"arm": part.get("arm")} if isinstance(part, dict) else part, _PART, path, _REMEDY)
    if Arm(**part["arm"]).name != path.name.rpartition("-")[0]:
        raise InputError(f"{path} is of another model, {Arm(**part['arm']).name}; {_REMEDY}")
    return part


def _arm(arm: Mapping[str, Any]) -> str:
    return arm["ratio"] if arm["attention"] == TOPK else arm["attention"]


@dataclass(frozen=True)
class Gaps:
    """One training's scores minus another's [cells], paired; shown: which differ from zero, by Holm over the cells.

    units: what was paired, the seeds; with one seed the haystacks, which say nothing of another training.
    """

    gap: Interval
    shown: NDArray[np.bool_]
    units: str


def gaps(one: Array, other: Array, questions: Array, alpha: float = 0.05) -> Gaps:
    """Differences of rates [seeds, cells, haystacks] that were trained and evaluated alike."""
    if len(one) > 1:
        weights = np.ones(len(one))
        values = ((one - other) @ questions / questions.sum()).T
        units = f"{len(one)} paired seeds"
    else:
        values, weights = (one - other)[0], questions
        units = f"{len(questions)} haystacks of one seed"
    gap = stats.mean(values, weights)
    return Gaps(gap, holm(_p(values, weights), alpha), units)


def _p(values: Array, weights: Array) -> Array:
    """Student's paired test of each row against zero; 1 where all are zero, or one alone."""
    from scipy import stats as scipy_stats

    count = len(weights)
    if count < 2:
        return np.ones(len(values))
    # The interval at one standard error, from which the test is read back.
    means = values @ weights / weights.sum()
    off = (values - means[:, None]) * weights
    errors = np.sqrt(count / (count - 1) * (off**2).sum(1)) / weights.sum()
    t = np.divide(means, errors, out=np.where(means == 0, 0.0, np.inf), where=errors > 1e-15)
    return np.asarray(2 * scipy_stats.t.sf(np.abs(t), count - 1))
