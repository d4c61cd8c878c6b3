"""A registered law: what the answer's key keeps of its weight says whether an answer is right.

Pure functions of arrays, and the file that a law is registered in (topkit/data/laws). A law is committed before
it is run, and fits nothing to what it predicts.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topkit.documents import Number, OneOf, Whole, quote, read_yaml
from topkit.documents.digest import file_digest
from topkit.errors import InputError
from topkit.experiments.study.stats import Array
from topkit.experiments.tasks import make_task, task_name
from topkit.grammar import nearest

FOLDER = Path(__file__).parents[2] / "data" / "laws"
REMEDY = "write a law as topkit/data/laws/answer-key.yaml is"
_SHARE = Number(0, 1)
SCHEMA: Any = {
    "about": str,
    "formula": OneOf("logistic"),
    "half right at": _SHARE,
    "slope": Number(0.01, 100),
    "reading heads": Whole(1),
    "split haystacks": Whole(1),
    "planned haystacks": Whole(2),
    "least families": Whole(2),
    "refuted above": _SHARE,
    "least full attention": _SHARE,
    "models": {str: {"tasks": [str], "why": str}},
    "kept for the end": {
        "model": str,
        "made by": str,
        "recipe": {str: Whole()},
        "tasks": [str],
        "why": str,
    },
    "seen": [str],
}


@dataclass(frozen=True)
class Kept:
    """The model that a law keeps for the end, and its tasks.

    model: the last names of its path; made_by: the command that makes it; recipe: numbers of the recipe.json that
    this leaves beside it.
    """

    model: str
    made_by: str
    recipe: Mapping[str, int]
    tasks: tuple[str, ...]

    def is_called(self, model: str) -> bool:
        names = Path(self.model).parts
        return Path(model).parts[-len(names) :] == names


@dataclass(frozen=True)
class Law:
    """A law as its file has it.

    half: the weight at which half of the steps go right; slope: of the logistic in ln(weight); heads: how many
    read the answer, found on `split` haystacks of their own; haystacks, families: the least of which there is a
    verdict; error: the mean error above which the law is refuted; dense: what full attention must score on a task
    that counts; models, kept: what it must predict, each a model's tasks; seen: the kinds of task that its form was
    chosen on, which no verdict counts.
    """

    name: str
    path: Path
    sha256: str
    half: float
    slope: float
    heads: int
    split: int
    haystacks: int
    families: int
    error: float
    dense: float
    models: dict[str, tuple[str, ...]]
    kept: Kept
    seen: tuple[str, ...]

    def tasks_of(self, model: str) -> tuple[str, ...]:
        """What it must predict of a model; nothing of one that it does not name."""
        if self.kept.is_called(model):
            return self.kept.tasks
        return self.models.get(model, ())

    def step(self, weights: Array) -> Array:
        """The chance that a step is right, of the answer key's weight after selection."""
        with np.errstate(divide="ignore"):
            return 1 / (1 + (self.half / weights) ** self.slope)

    @property
    def written(self) -> str:
        """The law as study.json names it: topkit's own by its name."""
        return self.name if self.path.parent == FOLDER else str(self.path)

    @property
    def formula(self) -> str:
        return f"1 / (1 + ({self.half:g} / ws)^{self.slope:g})"


def names() -> list[str]:
    """The laws that come with topkit."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_law(law: str | Path) -> Law:
    """The law of a name or a file. Raises: InputError for an unknown name, and for a file that is none."""
    named = str(law) in names()
    path = FOLDER / f"{law}.yaml" if named else Path(law)
    if not named and path.suffix not in (".yaml", ".yml"):
        raise InputError(f"unknown law {quote(str(law))}; {nearest(str(law), names())}")
    held = read_yaml(path, SCHEMA, REMEDY)
    if held["half right at"] == 0:
        raise InputError(f"{path}: half right at must be more than 0; {REMEDY}")
    kept = held["kept for the end"]
    return Law(
        path.stem,
        path,
        file_digest(path),
        float(held["half right at"]),
        float(held["slope"]),
        held["reading heads"],
        held["split haystacks"],
        held["planned haystacks"],
        held["least families"],
        float(held["refuted above"]),
        float(held["least full attention"]),
        {model: _tasks(its["tasks"]) for model, its in held["models"].items()},
        Kept(kept["model"], kept["made by"], kept["recipe"], _tasks(kept["tasks"])),
        tuple(held["seen"]),
    )


def _tasks(written: list[str]) -> tuple[str, ...]:
    """Tasks as tables name them."""
    return tuple(task_name(make_task(task)) for task in written)


def require_unchanged(law: Law, digest: str, where: str | Path) -> None:
    """Raises: InputError where a law is not what it was when a study was run of it."""
    if law.sha256 != digest:
        raise InputError(
            f"{law.path} was changed after {where} was run of it (sha256 {law.sha256[:12]}, not {digest[:12]}): a law "
            "is registered before its run; restore the file, or register another and run it into another folder"
        )


def reading_heads(weights: dict[tuple[int, int], float], count: int) -> list[tuple[int, int]]:
    """The heads (layer, head) of largest mean weight on the answer's key; of equal ones the first.

    Raises: InputError where there are fewer than `count`.
    """
    if len(weights) < count:
        raise InputError(
            f"the law reads {count} heads; of {len(weights)} the weight on the answer's key was observed"
        )
    return sorted(weights, key=lambda place: (-weights[place], place))[:count]


def answer_chance(steps: Array, parts: float) -> float:
    """The expected score of an answer, of the chances of its steps [n] that need a key.

    All have to go right. An answer that is scored by several parts, each for itself, has the mean of theirs,
    taken as alike: the root of so many.
    """
    return float(np.exp(np.log(np.maximum(steps, 1e-300)).sum() / parts))
