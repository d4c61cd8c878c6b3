"""A stage of a study, a model's pilot or its run of a seed, as an evaluation; and what study.json says of it."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topkit.errors import InputError
from topkit.experiments.evaluate.plan import EvaluatePlan, Part, plan_parts
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.load import load_once
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.equal_cells import shape_of
from topkit.experiments.runs.shards import WHOLE
from topkit.experiments.study.course import Course, Stage
from topkit.experiments.study.design import Study
from topkit.experiments.study.equal_recipes import RAN, ran
from topkit.experiments.study.haystacks import curves_of_parts
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.pilot import Placed, asked, ladders, placed
from topkit.experiments.study.reading import STUDY, study_of
from topkit.grammar import short
from topkit.indexers.base import Indexer
from topkit.indexers.budget import parse_budget


def about_of(course: Course, stage: Stage) -> dict[str, Any]:
    """What study.json says of a stage."""
    reasons, choice = left_out(course, stage), chosen(course, stage)
    about = {**course.about, "model": stage.model}
    if choice is not None:
        about["pilot"] = "; ".join(choice.lines)
    if reasons:
        about["left out"] = "; ".join(reasons.values())
    if course.study.leaderboard:
        about |= _ran(course, stage, reasons)
    return about


def _ran(course: Course, stage: Stage, reasons: Mapping[Indexer, str]) -> dict[str, Any]:
    """Each recipe as it runs at each budget, of those that a model can serve."""
    study, choice = course.study.of(stage.model), chosen(course, stage)
    model, _ = load_once(stage.model, course.study.device, course.study.dtype)
    records = probe(model, purpose="evaluated", softmax=True)
    one = records[min(records)]
    lengths = dict.fromkeys(n for _, n in (choice.settings if choice else study.settings))
    shapes = {n: shape_of(one.queries, one.keys, one.values, n) for n in lengths}
    cells = [cell for cell in study.cells if cell.indexer is not None and cell.indexer not in reasons]  # fmt: skip
    made = ran(cells, study.budget, shapes)
    # What joined before stays, as its rows do.
    before: list[Any] = [] if course.force else study_of(stage.out / STUDY).get(RAN, [])
    return {**made, RAN: [*made[RAN], *(row for row in before if row not in made[RAN])]}


def left_out(course: Course, stage: Stage) -> dict[Indexer, str]:
    """The indexers that a stage's model cannot serve, each with the reason."""
    model, _ = load_once(stage.model, course.study.device, course.study.dtype)
    recipes = dict.fromkeys(
        cell.indexer for cell in course.study.of(stage.model).cells if cell.indexer is not None
    )
    return unserved(model, recipes, probe(model, purpose="evaluated", softmax=True))


def chosen(course: Course, stage: Stage) -> Placed | None:
    """What a stage's pilot chose; None where there is none, or it has not run."""
    study = course.study.of(stage.model)
    pilot, terms = course.pilot_of(stage), study.pilot
    if pilot is None or terms is None or not (pilot.out / run_file.NAME).exists():
        return None
    parts = asked(study, terms)
    curves = curves_of_parts(pilot.out, parts)
    whole = {(curve.task, curve.length): len(curve.haystacks) for curve in curves}
    if len(whole) < len(parts) or min(whole.values()) < terms.haystacks:
        return None
    return placed(study, terms, curves, stage.model)


def evaluation(course: Course, stage: Stage, piloted: bool = False) -> EvaluatePlan:
    """The evaluation of a stage; `piloted`: the pilot has just run, also by force."""
    study = course.study.of(stage.model)
    setting = Setting(
        out=stage.out,
        model=stage.model,
        device=study.device,
        dtype=study.dtype,
        seed=stage.seed,
        sparse_from=stage.sparse_from,
        observe="answer-rows" if stage.split else False if stage.pilot else study.observe,
        shadow=study.shadow and not (stage.pilot or stage.split),
        rows=study.batch_size,
        text=study.text,
        threads=course.crew.threads,
        memory=course.memory,
    )
    if stage.split:
        notes, parts = list[str](), _split(study)
    else:
        notes, parts = _pilot(study) if stage.pilot else _parts(course, stage, piloted)
    loaded = load_once(stage.model, study.device, study.dtype)
    return plan_parts(
        loaded,
        setting,
        parts,
        workers=course.crew.workers,
        runner=course.crew.runner,
        # All shards need a pilot's choice before they begin: the first to come runs it, and others wait.
        shard=WHOLE if stage.pilot or stage.split else course.shard,
        waits=(stage.pilot or stage.split) and not course.shard.whole,
        force=course.force,
        notes=notes,
        # A pilot and a split have oracles alone.
        budgets=() if stage.pilot or stage.split else study.budget,
        leave_out=True,
    )


def _pilot(study: Study) -> tuple[list[str], list[Part]]:
    assert study.pilot is not None
    return study.short_files, asked(study, study.pilot)


def _split(study: Study) -> list[Part]:
    """A dense pass over haystacks that are no others', by a selection of all keys, which is judged."""
    assert study.law is not None
    every, dense = study.law.split, Cell(EXACT, parse_budget("100%"))
    return [
        Part((task,), (length,), every, (dense,), study.haystacks_of(task, length))
        for task, length in study.settings
    ]


def _parts(course: Course, stage: Stage, piloted: bool) -> tuple[list[str], list[Part]]:
    """What a stage evaluates, and what is said of it: the pilot's choice, cells that are left out."""
    study, reasons = course.study.of(stage.model), left_out(course, stage)
    notes = [f"{short(indexer)} is left out: {reason}" for indexer, reason in reasons.items()]
    if study.pilot is None:
        return notes, study.parts(study.settings, *reasons)
    choice = chosen(course, stage) if piloted or not course.force else None
    if choice is None and piloted:
        raise InputError(
            f"the pilot of {stage.model} is not whole: part of it was left to others, as to other shards; run the "
            "same again when they have run theirs"
        )
    if choice is not None:
        said = [f"pilot of {stage.model}: {line}" for line in choice.lines]
        return [*said, *notes], study.parts(choice.settings, *reasons)
    first = tuple(dict.fromkeys(group[0] for group in ladders(study, study.pilot)))
    waits = f"the pilot of {stage.model} chooses tasks and lengths first; counted as if the first of each ladder suited"
    return [waits, *notes], study.parts(first, *reasons)
