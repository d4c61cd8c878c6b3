"""A study's runs one after the other: for each model a pilot, then a run a seed, and at last the report."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from topkit.errors import InputError
from topkit.experiments.evaluate.plan import EvaluatePlan
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import require_able
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.plan import Plan
from topkit.experiments.study import kept_model
from topkit.experiments.study.course import Course, Stage
from topkit.experiments.study.ending import ended
from topkit.experiments.study.law import require_unchanged
from topkit.experiments.study.reading import LAW, RUNS, SPLIT, STUDY, study_of
from topkit.experiments.study.stages import about_of, evaluation


def plan_of(course: Course) -> StudyPlan:
    """The plan of a course, from its first stage on.

    Raises: InputError as `evaluate` does, for any stage; and where a finished pilot finds nothing to study.
    """
    _require_room(course)
    _require_law(course)
    # A pilot asks exact Top-k alone: what the cells behind it lack would be met once it has run.
    for model in course.study.model:
        for cell in course.study.of(model).cells:
            if cell.indexer is not None:
                require_able(cell.indexer)
    # The last model first, so that the one that runs first is the one that stays loaded.
    made = [evaluation(course, stage) for stage in reversed(course.stages)][::-1]
    _require_keys(course, made)
    return _plan(course, 0, made, ())


def _require_room(course: Course) -> None:
    """A folder holds one run, or a study of several."""
    if course.force:
        return
    if course.several and (course.out / run_file.NAME).exists():
        raise InputError(f"{course.out} holds a run of one model and seed; use another folder")
    if not course.several and RUNS in study_of(course.out / STUDY):
        raise InputError(f"{course.out} holds a study of several runs; use another folder")


def _require_law(course: Course) -> None:
    """A folder's law is the one that it was begun with; the model that it keeps for the end has its turn."""
    law, said = course.study.law, study_of(course.out / STUDY).get(LAW)
    if law is None:
        return
    if said is not None and not course.force:
        require_unchanged(law, said["sha256"], course.out)
    for run in course.runs:
        if law.kept.is_called(run.model):
            kept_model.require_its_turn(law, run.model, run.out, course.force)


def _require_keys(course: Course, evaluations: Sequence[EvaluatePlan]) -> None:
    """A law weighs the answers' keys, which each of its tasks must have."""
    without = dict.fromkeys(task for one in evaluations for task in one.keyless)
    if course.study.law is not None and without:
        raise InputError(
            f"a law weighs the keys of answers, and it is not known where those of {', '.join(without)} stand; "
            "ask a task that says it, as needles do"
        )


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
                _write(course.out / STUDY, {**course.about, RUNS: listed(course)})
            if not (stage.pilot or stage.split):
                _write(stage.out / STUDY, about_of(course, stage))
                law = course.study.law
                if law is not None and law.kept.is_called(stage.model):
                    kept_model.note(law, stage.out)
            yield jobs

    def result(self, results: Sequence[None]) -> Path | Plan[Path]:
        self.evaluations[0].result(results)
        if self.at + 1 == len(self.course.stages):
            # Of shards, the last to end finds all of them whole.
            return self.course.out if self.left_over else ended(self.course.out, self.course.shard)
        following = self.course.stages[self.at + 1]
        later = list(self.evaluations[1:])
        if self.course.study.of(following.model).pilot is not None:  # which has chosen by now
            later[0] = evaluation(self.course, following, piloted=True)
        return _plan(self.course, self.at + 1, later, (*self.before, self.evaluations[0]))

    @property
    def left_over(self) -> int:
        return sum(one.left_over for one in (*self.before, *self.evaluations))


def _words(stage: Stage) -> str:
    what = "pilot" if stage.pilot else "split" if stage.split else f"seed {stage.seed}"
    return f"{stage.model}, {what}"


def listed(course: Course) -> list[dict[str, Any]]:
    """What study.json says of the runs of a course."""
    return [
        {
            "model": run.model,
            "seed": run.seed,
            "folder": str(run.out.relative_to(course.out)),
            **_split(course, run),
        }
        for run in course.runs
    ]


def _split(course: Course, run: Stage) -> dict[str, str]:
    split = course.split_of(run)
    return {} if split is None else {SPLIT: str(split.relative_to(course.out))}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"), parents=False)
