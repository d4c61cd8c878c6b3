"""The study scale: one recipe's models at several sizes, by accuracy against k, and by the heads that read the answer."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from topkit.errors import InputError
from topkit.experiments.model.load import load_once, resolve
from topkit.experiments.study.course import Course
from topkit.experiments.study.study_plan import StudyPlan
from topkit.experiments.study.study_plan import plan_of as plan_of_curves

# What study.json says of the models: the number of parameters of each.
PARAMETERS = "parameters"


def plan_of(course: Course) -> StudyPlan:
    """The plan of the models that are there; what is not is left out, with a note that says how to make it.

    Raises: InputError where none is, and as a study of curves does.
    """
    there, notes = list[str](), list[str]()
    for model in course.study.model:
        try:
            resolve(model)
            there.append(model)
        except InputError as error:
            remedy = _remedy(model)
            notes.append(
                f"{model} is left out: {f'it is not there; {remedy}' if remedy else error}"
            )
    if not there:
        raise InputError("; ".join(notes))
    study = replace(course.study, model=tuple(there))
    counts = {model: _parameters(course, model) for model in there}
    about = {**course.about, "model": ", ".join(there), PARAMETERS: counts, "absent": notes}
    plan = plan_of_curves(replace(course, study=study, about=about))
    return replace(plan, notes=(*notes, *plan.notes))


def _remedy(model: str) -> str:
    """How a model of a size is made, by its folder's name: .../60m/model, .../14m-2/model."""
    match = re.search(r"([0-9]+m)(?:-([0-9]+))?/model/?$", model)
    if match is None:
        return ""
    seed = f" --seed {match[2]}" if match[2] else ""
    out = model.rstrip("/").removesuffix("/model")
    return f"make it by topkit train reference --size {match[1]}{seed} --corpus BOOKS --out {out}"


def _parameters(course: Course, model: str) -> int:
    loaded, _ = load_once(model, course.study.device, course.study.dtype)
    weights: Mapping[int, Any] = {id(p): p for p in loaded.parameters()}
    return sum(p.numel() for p in weights.values())
