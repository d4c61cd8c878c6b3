"""The leaderboard of captures: one measurement after the other, and then the page."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (pyarrow comes without types.)
from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.layer import measure_layer
from topkit.experiments.measure.measure import setting_of
from topkit.experiments.measure.plan import MeasurePlan
from topkit.experiments.measure.plan import plan_of as measuring
from topkit.experiments.measure.request import Request
from topkit.experiments.runs.equal_cells import at_budgets, shape_of
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.plan import Plan
from topkit.experiments.runs.shards import WHOLE
from topkit.experiments.study.captured_recipes import served
from topkit.experiments.study.course import Course, folders
from topkit.experiments.study.ending import ended
from topkit.experiments.study.equal_recipes import RAN, ran
from topkit.experiments.study.kinds import kind_of
from topkit.experiments.study.reading import CAPTURED, STUDY, study_of


@dataclass(frozen=True, kw_only=True)
class CapturedPlan(Plan[Path]):
    """The measurements of captures, of which the first runs and the others follow; rows are of all."""

    out: Path
    about: Mapping[str, Any] = field(repr=False)
    left: tuple[MeasurePlan, ...] = field(repr=False)
    verb: ClassVar[str] = "measuring"
    work: ClassVar[Any] = staticmethod(measure_layer)

    def describe(self) -> list[dict[str, Any]]:
        return [part for one in self.left for part in one.describe()]

    def lines(self) -> list[str]:
        return [line for one in self.left for line in one.lines()]

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        text = json.dumps(self.about, indent=1) + "\n"
        write_whole(self.out / STUDY, lambda to: to.write_text(text, encoding="utf-8"))
        with self.left[0].opened() as jobs:
            yield jobs

    def result(self, results: Sequence[None]) -> Path | Plan[Path]:
        following = self.left[1:]
        if following:
            return _of(following, self.out, self.about)
        return ended(self.out, WHOLE)


def plan_of(course: Course) -> CapturedPlan:
    """The plan of a course. Raises: InputError for shards, without captures, and where none can be asked anything."""
    if not course.shard.whole:
        raise InputError("a leaderboard of captures has no shards; its jobs are few: use --jobs")
    paths = course.study.captures
    if not paths:
        raise InputError("a leaderboard of captures needs some; name each by --capture")
    names = folders([str(path.with_suffix("") if path.suffix else path) for path in paths])
    made = [_of_capture(course, *one) for one in zip(paths, names, strict=True)]
    about = {**course.about, "topkit": topkit.__version__, CAPTURED: [one for one, _ in made]}
    return _of(tuple(plan for _, plan in made), course.out, about, first=True)


def _of(
    plans: tuple[MeasurePlan, ...], out: Path, about: Mapping[str, Any], first: bool = False
) -> CapturedPlan:
    one = plans[0]
    return CapturedPlan(
        jobs=one.jobs,
        done=one.done,
        rows=sum(plan.rows for plan in plans),
        bytes=sum(plan.bytes for plan in plans),
        memory=max(plan.memory for plan in plans),
        workers=one.workers,
        runner=one.runner,
        notes=tuple(dict.fromkeys(note for plan in plans for note in plan.notes)) if first else (),
        out=out,
        about=about,
        left=plans,
    )


def _of_capture(course: Course, path: Path, name: str) -> tuple[dict[str, Any], MeasurePlan]:
    """What study.json says of a capture, and its measurement at the budgets of bytes."""
    study, capture = course.study, Capture.open(path)
    asked = [cell for cell in study.cells if cell.indexer is not None]
    recipes = dict.fromkeys(cell.indexer for cell in asked if cell.indexer is not None)
    kept, notes = served(recipes, capture)
    cells = [cell for cell in asked if cell.indexer in kept]
    if all(kind_of(cell) == "oracle" for cell in cells):
        raise InputError(f"no indexer can be asked of {path}: {'; '.join(notes)}")
    tokens = max(record["tokens"] for record in capture.manifest["samples"])
    first = capture.load(capture.samples[0], capture.layers[0])
    shape = shape_of(first.queries, first.keys, first.values, tokens)
    equal = at_budgets(cells, study.budget, shape, leave_out=True)
    told = ran(cells, study.budget, {tokens: shape})
    about = {
        "name": name,
        "folder": name,
        "capture": capture.fingerprint,
        "samples": len(capture.samples),
        "layers": list(capture.layers),
        "tokens": tokens,
        **told,
        RAN: _beside(told[RAN], _before(course.out, capture)),
    }
    setting = setting_of(course.out / name, None, True, study.seed[0], study.device)
    setting = replace(setting, threads=course.crew.threads)
    request = Request(capture, equal.cells, tuple(capture.layers), setting, course.force)
    return about, measuring(request, course.crew, [f"{name}: {x}" for x in (*notes, *equal.notes)])


def _before(out: Path, capture: Capture) -> list[Mapping[str, Any]]:
    """What an earlier call ran of the same capture: it stays."""
    known = study_of(out / STUDY).get(CAPTURED, [])
    return [row for one in known if one["capture"] == capture.fingerprint for row in one[RAN]]


def _beside(rows: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Rows and those of before that are not among them."""
    names = ("recipe", "bytes", "length", "k")
    every = {tuple(row[name] for name in names): row for row in (*before, *rows)}
    return list(every.values())
