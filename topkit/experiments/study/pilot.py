"""A pilot: few haystacks of their own, which say on what tasks and lengths indexers can be told apart."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from topkit.errors import InputError
from topkit.experiments.evaluate.plan import Part
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.design import Pilot, Study
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.tasks import Task, task_name
from topkit.experiments.tasks.books import Books

# The first seed of a pilot: no study's, so that its haystacks are no study's.
SEED = 1_000_000
Setting = tuple[Task, int]


def seed_of(study: Study) -> int:
    """A seed that is none of the study's."""
    return next(seed for seed in count(SEED) if seed not in study.seed)


def ladders(study: Study, pilot: Pilot) -> list[list[Setting]]:
    """Tasks at lengths in groups, of each of which the first that suits is studied."""
    groups: list[list[Setting]] = []
    for task, own in study.tasks:
        rungs = _rungs(task, pilot)
        if pilot.lengths:
            groups.append([(rung, length) for length in pilot.lengths for rung in rungs])
        else:
            groups += [[(rung, length) for rung in rungs] for length in own or study.lengths]
    return groups


def _rungs(task: Task, pilot: Pilot) -> list[Task]:
    """A task with each number of distractors, where it has any."""
    if not pilot.distractors or not getattr(task, "distractors", 0):
        return [task]
    changes: list[dict[str, Any]] = [{"distractors": n} for n in pilot.distractors]
    return [replace(task, **change) for change in changes]


def asked(study: Study, pilot: Pilot) -> list[Part]:
    """What a pilot evaluates: full attention, and exact Top-k at three budgets.

    A file of prompts has the same ones whatever the seed: the pilot's begin where the study's end.
    """
    budgets = pilot.budgets or study.exact_budgets
    cells = (Cell(), *(Cell(EXACT, budget) for budget in budgets))
    every = [setting for group in ladders(study, pilot) for setting in group]
    return [
        Part((task,), (length,), pilot.haystacks, cells, study.haystacks_of(task, length))
        for task, length in dict.fromkeys(every)
        if judged(task)
    ]


def judged(task: Task) -> bool:
    """Whether answers are right or wrong; running text is told by its NLL, and needs no pilot."""
    return not isinstance(task, Books)


@dataclass(frozen=True)
class Placed:
    """What a pilot chose, and a line a setting that says why."""

    settings: tuple[Setting, ...]
    lines: tuple[str, ...]


def placed(study: Study, pilot: Pilot, curves: Sequence[Curve], model: str) -> Placed:
    """The first setting of each ladder on which full attention is right and exact Top-k is not always.

    Raises: InputError where there is none, with what each scored.
    """
    known = {(curve.task, curve.length): curve for curve in curves}
    chosen: list[Setting] = []
    lines: list[str] = []
    for group in ladders(study, pilot):
        fits = [setting for setting in group if not _fault(setting, known, pilot)]
        chosen += fits[:1]
        lines += _lines(group, fits[:1], known, pilot)
    if not chosen:
        raise InputError(
            f"the pilot finds nothing to study with {model}: {'; '.join(lines)}; choose other tasks, lengths "
            "or budgets, or go on all the same with --no-pilot"
        )
    return Placed(tuple(dict.fromkeys(chosen)), tuple(lines))


def _lines(
    group: Sequence[Setting],
    chosen: Sequence[Setting],
    known: Mapping[tuple[str, int], Curve],
    pilot: Pilot,
) -> Iterator[str]:
    for setting in group:
        task, length = setting
        name = f"{task_name(task)} at {length:,} tokens"
        if not judged(task):
            yield f"{name} is studied: running text is told by its NLL"
            continue
        fault, scores = _fault(setting, known, pilot), _scores(known[task_name(task), length])
        if setting in chosen:
            yield f"{name} is studied: {scores}"
        elif fault:
            yield f"{name} is left out, {fault}: {scores}"
        else:
            yield f"{name} would do, and comes later on its ladder: {scores}"


def _fault(setting: Setting, known: Mapping[tuple[str, int], Curve], pilot: Pilot) -> str:
    """Why a setting tells indexers apart badly; nothing where it does not."""
    task, length = setting
    if not judged(task):
        return ""
    dense, exact = _means(known[task_name(task), length])
    low, high = pilot.exact_between
    if dense < pilot.dense_at_least:
        return f"since full attention scores below {pilot.dense_at_least:g}"
    if any(low <= score <= high for score in exact.values()):
        return ""
    if all(score > high for score in exact.values()):
        return f"since exact Top-k scores above {high:g} at every k"
    if all(score < low for score in exact.values()):
        return f"since exact Top-k scores below {low:g} at every k"
    return f"since exact Top-k scores between {low:g} and {high:g} at no k"


def _means(curve: Curve) -> tuple[float, dict[str, float]]:
    """What full attention scores, and exact Top-k by budget."""
    means = curve.rates @ curve.trials / curve.trials.sum()
    by_cell = dict(zip(curve.cells, (float(mean) for mean in means), strict=True))
    exact = {str(cell.budget): by_cell[cell] for cell in curve.cells if cell.indexer == EXACT}
    return by_cell[Cell()], exact


def _scores(curve: Curve) -> str:
    dense, exact = _means(curve)
    at = ", ".join(f"{score:.2f} at k = {k}" for k, score in exact.items())
    return f"full attention {dense:.2f}, exact Top-k {at} ({len(curve.haystacks)} haystacks)"
