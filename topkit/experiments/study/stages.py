"""A study's runs one after the other: for each model a pilot, then a run a seed, and at last the report."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from topkit.errors import InputError
from topkit.experiments.evaluate.plan import EvaluatePlan, Part, plan_parts
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.load import load_once
from topkit.experiments.runs import run_file
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import digest, write_whole
from topkit.experiments.runs.plan import Plan
from topkit.experiments.runs.runners import Crew
from topkit.experiments.runs.shards import WHOLE, Shard
from topkit.experiments.study.haystacks import curves_of_parts
from topkit.experiments.study.pilot import Placed, asked, ladders, placed, seed_of
from topkit.experiments.study.reading import RUNS, STUDY, study_of
from topkit.experiments.study.report import write_report
from topkit.experiments.study.study_file import Study
from topkit.grammar import short
from topkit.indexers.base import Indexer


@dataclass(frozen=True)
class Stage:
    """A model's pilot, or its run of a seed."""

    model: str
    seed: int
    out: Path
    pilot: bool = False


@dataclass(frozen=True, kw_only=True)
class Course:
    """A study and where it goes. about: what study.json says of it beside what a stage adds."""

    study: Study
    out: Path
    about: Mapping[str, Any]
    crew: Crew
    shard: Shard = WHOLE
    force: bool = False

    @property
    def stages(self) -> list[Stage]:
        """One model and seed fill the study's own folder; several have a folder each below it."""
        study, stages = self.study, list[Stage]()
        for model, name in zip(study.model, folders(study.model), strict=True):
            own = self.out / name if len(study.model) > 1 else self.out
            one = study.of(model)
            if one.pilot is not None and asked(one, one.pilot):
                stages.append(Stage(model, seed_of(study), own / "pilot", pilot=True))
            for seed in study.seed:
                out = own / f"seed-{seed}" if len(study.seed) > 1 else own
                stages.append(Stage(model, seed, out))
        return stages

    @property
    def runs(self) -> list[Stage]:
        """The stages that the report is of."""
        return [stage for stage in self.stages if not stage.pilot]

    @property
    def several(self) -> bool:
        return len(self.runs) > 1

    def pilot_of(self, stage: Stage) -> Stage | None:
        pilots = (one for one in self.stages if one.pilot and one.model == stage.model)
        return next(pilots, None)


def folders(models: Sequence[str]) -> list[str]:
    """A folder's name for each model, as short as tells them apart."""
    words = [re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.") for model in models]
    last = [re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower()).strip("-.") for model in models]
    names = last if len(set(last)) == len(last) else words
    if len(set(names)) < len(names) or not all(0 < len(name) <= 100 for name in names):
        names = [f"{name[:80]}-{digest(model)}" for name, model in zip(names, models, strict=True)]
    return names


def plan_of(course: Course) -> StudyPlan:
    """The plan of a course, from its first stage on.

    Raises: InputError as `evaluate` does, for any stage; and where a finished pilot finds nothing to study.
    """
    _require_room(course)
    # The last model first, so that the one that runs first is the one that stays loaded.
    made = [_evaluation(course, stage) for stage in reversed(course.stages)][::-1]
    return _plan(course, 0, made, ())


def _require_room(course: Course) -> None:
    """A folder holds one run, or a study of several."""
    if course.force:
        return
    if course.several and (course.out / run_file.NAME).exists():
        raise InputError(f"{course.out} holds a run of one model and seed; use another folder")
    if not course.several and RUNS in study_of(course.out / STUDY):
        raise InputError(f"{course.out} holds a study of several runs; use another folder")


def _plan(
    course: Course,
    at: int,
    evaluations: Sequence[EvaluatePlan],
    before: Sequence[EvaluatePlan],
) -> StudyPlan:
    """The plan of the stage at a place, and of those behind it."""
    return StudyPlan(
        jobs=tuple(job for one in evaluations for job in one.jobs),
        done=sum(one.done for one in evaluations),
        rows=sum(one.rows for one in evaluations),
        bytes=sum(one.bytes for one in evaluations),
        memory=max(one.memory for one in evaluations),
        workers=course.crew.workers,
        runner=course.crew.runner,
        notes=tuple(dict.fromkeys(note for one in evaluations for note in one.notes)),
        course=course,
        at=at,
        evaluations=tuple(evaluations),
        before=tuple(before),
    )


@dataclass(frozen=True, kw_only=True)
class StudyPlan(Plan[Path]):
    """The evaluation of a stage and of those behind it, and then the report. Estimates: all of them together.

    What stands behind a pilot that has not run is counted as if its first choice suited.
    """

    course: Course = field(repr=False)
    at: int = 0
    evaluations: tuple[EvaluatePlan, ...] = field(repr=False)
    before: tuple[EvaluatePlan, ...] = field(default=(), repr=False)
    verb: ClassVar[str] = EvaluatePlan.verb
    work: ClassVar[Any] = staticmethod(EvaluatePlan.work)

    @property
    def stage(self) -> Stage:
        return self.course.stages[self.at]

    def describe(self) -> list[dict[str, Any]]:
        stages = self.course.stages[self.at :]
        several = len(stages) > 1
        return [
            {**part, **({"model": s.model, "seed": s.seed, "pilot": s.pilot} if several else {})}
            for s, one in zip(stages, self.evaluations, strict=True)
            for part in one.describe()
        ]

    def lines(self) -> list[str]:
        stages = self.course.stages[self.at :]
        if len(stages) == 1:
            return self.evaluations[0].lines()
        return [
            f"{_words(stage)}: {line}"
            for stage, one in zip(stages, self.evaluations, strict=True)
            for line in one.lines()
        ]

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        course, stage = self.course, self.stage
        with self.evaluations[0].opened() as jobs:
            # Before the jobs, so that a study cut short can be reported as what it is.
            if course.several:
                _write(course.out / STUDY, {**course.about, RUNS: _listed(course)})
            if not stage.pilot:
                _write(stage.out / STUDY, about_of(course, stage))
            yield jobs

    def result(self, results: Sequence[None]) -> Path | Plan[Path]:
        self.evaluations[0].result(results)
        if self.at + 1 == len(self.course.stages):
            # Of shards, the last to end finds all of them whole.
            return self.course.out if self.left_over else write_report(self.course.out)
        following = self.course.stages[self.at + 1]
        later = list(self.evaluations[1:])
        if self.course.study.of(following.model).pilot is not None:  # which has chosen by now
            later[0] = _evaluation(self.course, following, piloted=True)
        return _plan(self.course, self.at + 1, later, (*self.before, self.evaluations[0]))

    @property
    def left_over(self) -> int:
        return sum(one.left_over for one in (*self.before, *self.evaluations))


def _words(stage: Stage) -> str:
    return f"{stage.model}, {'pilot' if stage.pilot else f'seed {stage.seed}'}"


def _listed(course: Course) -> list[dict[str, Any]]:
    return [
        {"model": run.model, "seed": run.seed, "folder": str(run.out.relative_to(course.out))}
        for run in course.runs
    ]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"), parents=False)


def about_of(course: Course, stage: Stage) -> dict[str, Any]:
    """What study.json says of a stage."""
    reasons, choice = left_out(course, stage), chosen(course, stage)
    about = {**course.about, "model": stage.model}
    if choice is not None:
        about["pilot"] = "; ".join(choice.lines)
    if reasons:
        about["left out"] = "; ".join(reasons.values())
    return about


def left_out(course: Course, stage: Stage) -> dict[Indexer, str]:
    """The indexers that a stage's model cannot serve, each with the reason."""
    model, _ = load_once(stage.model, course.study.device, course.study.dtype)
    recipes = dict.fromkeys(
        cell.indexer for cell in course.study.of(stage.model).cells if cell.indexer is not None
    )
    return unserved(model, recipes, probe(model, purpose="evaluated"))


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


def _evaluation(course: Course, stage: Stage, piloted: bool = False) -> EvaluatePlan:
    """The evaluation of a stage; `piloted`: the pilot has just run, also by force."""
    study = course.study.of(stage.model)
    setting = Setting(
        out=stage.out,
        model=stage.model,
        device=study.device,
        dtype=study.dtype,
        seed=stage.seed,
        sparse_from=study.sparse_from,
        observe=False if stage.pilot else study.observe,
        rows=study.batch_size,
        text=study.text,
        threads=course.crew.threads,
    )
    notes, parts = _pilot(study) if stage.pilot else _parts(course, stage, piloted)
    loaded = load_once(stage.model, study.device, study.dtype)
    return plan_parts(
        loaded,
        setting,
        parts,
        workers=course.crew.workers,
        runner=course.crew.runner,
        # All shards need a pilot's choice before they begin: the first to come runs it, and others wait.
        shard=WHOLE if stage.pilot else course.shard,
        waits=stage.pilot and not course.shard.whole,
        force=course.force,
        notes=notes,
        # A pilot has oracles alone.
        budgets=() if stage.pilot else study.budget,
        leave_out=True,
    )


def _pilot(study: Study) -> tuple[list[str], list[Part]]:
    assert study.pilot is not None
    return study.short_files, asked(study, study.pilot)


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
