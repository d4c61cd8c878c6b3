"""The study lightning-precision: samples of models and of captures, a job each, and then the report."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, ClassVar

import torch

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.evaluate.job import prompt_of
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.digests import weights_digest
from topkit.experiments.model.load import load_once
from topkit.experiments.model.record import record
from topkit.experiments.runs.cells import Cell, in_order
from topkit.experiments.runs.equal_cells import at_budgets, shape_of
from topkit.experiments.runs.identity import of_all
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import PART, digest, write_whole
from topkit.experiments.runs.plan import WITH_TRANSFORMERS, Plan
from topkit.experiments.runs.shards import WHOLE
from topkit.experiments.study.captured_recipes import served
from topkit.experiments.study.course import Course
from topkit.experiments.study.design import Study
from topkit.experiments.study.ending import ended
from topkit.experiments.study.kinds import innermost
from topkit.experiments.study.own_run import describe_study
from topkit.experiments.study.precision import ORACLES, Judge, plain
from topkit.experiments.study.reading import STUDY
from topkit.experiments.tasks import Task, task_name
from topkit.grammar import short
from topkit.indexers.base import Indexer
from topkit.indexers.noise import seed_of
from topkit.indexers.stated_cost import Shape

PARTS = "precision"


@dataclass(frozen=True)
class Piece:
    """One job: a sample of a model's task, or of a capture, and the cells that are judged there."""

    path: Path
    title: str
    cells: tuple[Cell, ...]
    sample: int
    task: Task | None = None
    length: int = 0
    capture: Capture | None = None


def judge_sample(setting: Setting, piece: Piece) -> None:
    """Judge a sample in every layer, and write its rows."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    device = torch.device(setting.device or "cpu")
    if piece.capture is not None:
        load, layers = partial(piece.capture.load, piece.sample), piece.capture.layers
    else:
        model, tokenizer = load_once(setting.model, setting.device, setting.dtype)
        of_layer = _recorded(setting, piece, model, tokenizer)
        load, layers, device = of_layer.__getitem__, sorted(of_layer), model.device
    judge = Judge(piece.cells, seed_of(setting.seed, piece.sample), device, load)
    rows = [{name: _or_none(x) for name, x in row.items()} for row in judge.rows(layers)]
    text = json.dumps({"title": piece.title, "sample": piece.sample, "rows": rows}) + "\n"
    write_whole(piece.path, lambda to: to.write_text(text, encoding="utf-8"))


def _or_none(x: Any) -> Any:
    return None if isinstance(x, float) and isnan(x) else x


def _recorded(
    setting: Setting, piece: Piece, model: Any, tokenizer: Any
) -> Mapping[int, LayerTensors]:
    """What attention saw at question and answer, in the layers that attend to all that is before."""
    assert piece.task is not None
    prompt = prompt_of(setting, piece.task, piece.length, piece.sample, tokenizer)
    question = prompt.questions[piece.sample % len(prompt.questions)]
    ids = [*prompt.ids, *question.ids, *question.answer_ids]
    positions = torch.arange(len(prompt.ids), len(ids))
    records = record(model, torch.tensor([ids]), positions, inputs=True, softmax=True)
    whole = {n: one for n, one in records.items() if one.window is None or one.window >= len(ids)}
    return {n: LayerTensors.of(one, piece.sample, n, positions) for n, one in whole.items()}


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan(Plan[Path]):
    """A job a sample, and then the report. Rows: a layer and cell each; bytes: PART a job."""

    out: Path
    about: Mapping[str, Any] = field(repr=False)
    device: str = "cpu"
    force: bool = False
    verb: ClassVar[str] = "judging"
    work: ClassVar[Any] = staticmethod(judge_sample)

    def describe(self) -> list[dict[str, Any]]:
        return [{"out": str(self.out), "settings": self.about["settings"], **self.numbers}]

    def lines(self) -> list[str]:
        jobs = len(self.jobs) + self.done
        return [f"{setting['title']}: {len(setting['parts'])} samples, {setting['cells']} cells"
                for setting in self.about["settings"]] + [f"{self.done} of {jobs} jobs done"]  # fmt: skip

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        describe_study(self.out, self.about, self.device, self.force)
        text = json.dumps(self.about, indent=1) + "\n"
        write_whole(self.out / STUDY, lambda to: to.write_text(text, encoding="utf-8"))
        yield self.jobs

    def result(self, results: Sequence[None]) -> Path:
        return ended(self.out, WHOLE)


def plan_of(course: Course) -> PrecisionPlan:
    """The plan of a course: samples whose parts are there whole are done.

    Raises: InputError for shards, for a folder of another study, and where no indexer can be judged.
    """
    if not course.shard.whole:
        raise InputError("lightning-precision has no shards; its jobs are few: use --jobs")
    made = [one for source in _sources(course) for one in source]
    left = [
        Job({"part": piece.path.name}, (setting, piece))
        for _, setting, pieces, _ in made
        for piece in pieces
        if course.force or not piece.path.exists()
    ]
    settings = [
        {
            "title": title,
            "text": all(p.task is not None and p.task.name == "books" for p in pieces),
            "parts": [piece.path.name for piece in pieces],
            "cells": len(pieces[0].cells),
        }
        for title, _, pieces, _ in made
    ]
    cells = max(len(pieces[0].cells) for _, _, pieces, _ in made)
    jobs = sum(len(pieces) for _, _, pieces, _ in made)
    about = {**course.about, "topkit": topkit.__version__, "settings": settings}
    return PrecisionPlan(
        jobs=tuple(left),
        done=jobs - len(left),
        rows=jobs * cells,
        bytes=jobs * PART,
        memory=course.crew.workers * WITH_TRANSFORMERS,
        workers=course.crew.workers,
        runner=course.crew.runner,
        notes=tuple(dict.fromkeys(note for _, _, _, notes in made for note in notes)),
        out=course.out,
        about=about,
        device=course.study.device or "cpu",
        force=course.force,
    )


Made = tuple[str, Setting, list[Piece], list[str]]


def _sources(course: Course) -> Iterator[list[Made]]:
    study = course.study
    if study.captures:
        yield [_of_capture(course, path) for path in study.captures]
        return
    for model in study.model:
        yield list(_of_model(course, study.of(model), model))


def _of_model(course: Course, study: Study, name: str) -> Iterator[Made]:
    """A setting for each task and length of a model."""
    model, _ = load_once(name, study.device, study.dtype)
    records = probe(model, purpose="judged", softmax=True)
    first, digest_of = records[min(records)], weights_digest(model)
    recipes = _recipes(study)
    reasons = unserved(model, recipes, records)
    notes = [f"{short(recipe)} is left out: {why}" for recipe, why in reasons.items()]
    left = [recipe for recipe in recipes if recipe not in reasons]
    setting = Setting(
        out=course.out, model=name, device=study.device, dtype=study.dtype, seed=study.seed[0],
        text=study.text, threads=course.crew.threads,
    )  # fmt: skip
    for task, length in study.settings:
        shape = shape_of(first.queries, first.keys, first.values, length)
        cells, more = _cells(study, left, shape)
        title = f"{name}, {task_name(task)}, {length:,} tokens"
        what = {"weights": digest_of, "task": task_name(task), "length": length, "dtype": str(model.dtype)}  # fmt: skip
        what |= {"seed": setting.seed, "text": str(setting.text)}
        pieces = [
            Piece(_part(course, what, cells, sample), title, cells, sample, task, length)
            for sample in range(study.at(length))
        ]
        yield title, setting, pieces, [*notes, *more]


def _of_capture(course: Course, path: Path) -> Made:
    """The samples of a capture, or of a file of tensors."""
    study, capture = course.study, Capture.open(path)
    first = capture.shape_of(capture.samples[0], capture.layers[0])
    asked = (r for r in _recipes(study) if not (first.index_only and r in ORACLES))
    kept, notes = served(asked, capture)
    shape = shape_of(first.queries, first.keys, first.values, first.keys.shape[2])
    cells, more = _cells(study, kept, shape)
    what = {"capture": capture.fingerprint, "seed": study.seed[0]}
    setting = Setting(
        out=course.out, model="", device=study.device, seed=study.seed[0],
        threads=course.crew.threads,
    )  # fmt: skip
    pieces = [
        Piece(
            _part(course, what, cells, sample), str(path), cells, sample,
            capture=capture.only(sample, *capture.layers),
        )
        for sample in capture.samples
    ]  # fmt: skip
    return str(path), setting, pieces, [*notes, *more]


def _recipes(study: Study) -> list[Indexer]:
    """The study's indexers, what they are compared with, and lightning in float32 beside lower precision."""
    own = [cell.indexer for cell in study.cells if cell.indexer is not None]
    twins = [twin for recipe in own if (twin := plain(recipe)) is not None]
    return list(dict.fromkeys((*ORACLES, *twins, *own)))


def _cells(
    study: Study, recipes: Sequence[Indexer], shape: Shape
) -> tuple[tuple[Cell, ...], list[str]]:
    """Each recipe at each budget of keys: trained ones and oracles as written, others at the budgets of bytes.

    Raises: InputError where there is none.
    """
    made = [Cell(recipe, k) for recipe in recipes for k in study.budgets]
    if not any(recipe not in ORACLES for recipe in recipes):
        raise InputError(
            "no indexer of the study can be judged here; name one that can, by --indexer"
        )
    written = [cell for cell in made if cell.indexer and _as_written(cell.indexer)]
    others = [cell for cell in made if cell not in written]
    if not (others and study.budget):
        return tuple(in_order(made)), []
    equal = at_budgets(others, study.budget, replace(shape), leave_out=True)
    return tuple(in_order([*written, *equal.cells])), list(equal.notes)


def _as_written(recipe: Indexer) -> bool:
    return recipe in ORACLES or innermost(recipe).family in ("trained", "oracle")


def _part(course: Course, what: Mapping[str, Any], cells: Sequence[Cell], sample: int) -> Path:
    """Where a job's rows stand: a name of all that they depend on."""
    recipes = [cell.indexer for cell in cells if cell.indexer is not None]
    contents = {name: dict(held) for name, held in of_all(recipes).items()}
    named = [cell.columns for cell in cells]
    everything = {**what, "cells": named, "contents": contents, "sample": sample}
    name = digest({**everything, "topkit": topkit.__version__})
    return course.out / PARTS / f"{name}.json"
