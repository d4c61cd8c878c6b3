"""The models of a study that trains: each start as it is, and trained by each attention with each seed; a job makes one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from topkit.experiments.evaluate.plan import plan_parts
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.load import load_once
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.plan import run
from topkit.experiments.study.design import Study
from topkit.experiments.study.reading import load_study
from topkit.experiments.tasks import Haystack, task_name
from topkit.experiments.tasks import prompt as make_prompt
from topkit.experiments.train.head_measures import head_measures
from topkit.experiments.train.recipe import Sft
from topkit.experiments.train.sft import train_sft

PARTS, RUNS = "parts", "evaluated"
BEFORE, DENSE, TOPK = "before", "dense", "topk"
# Haystacks of each task whose heads are measured.
MEASURED = 8


@dataclass(frozen=True, order=True)
class Arm:
    """One model of a study: a start, how it is trained (`before`: not), at what ratio, with which seed."""

    start: str
    folder: str
    attention: str
    ratio: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        if self.attention == BEFORE:
            return f"{self.folder}-before"
        ratio = f"-{self.ratio.removesuffix('%')}" if self.ratio else ""
        return f"{self.folder}-{self.attention}{ratio}-seed-{self.seed}"


@dataclass(frozen=True)
class Training:
    """What a job needs beside its arm. accuracy: whether the model is evaluated, or its heads measured alone.

    tokens: where those of the corpus stand that all trainings of a start read.
    """

    out: Path
    models: Path
    tokens: Path
    study: Study
    recipe: Sft
    corpus: Path | None
    books: int | None
    device: str
    workers: int
    threads: int | None
    accuracy: bool


# A job's arguments: what it needs, its model, and where its part stands.
Work = tuple[Training, Arm, Path]


def make_arm(training: Training, arm: Arm, part: Path) -> None:
    """Train a model, evaluate it, measure its heads, and write what was found."""
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    model = arm.start
    if arm.attention != BEFORE:
        folder = training.models / arm.name
        train_sft(
            arm.start,
            training.corpus,
            folder,
            attention=arm.attention,
            ratio=arm.ratio or None,
            recipe=replace(training.recipe, seed=arm.seed),
            device=training.device,
            workers=training.workers,
            stop_after=math.inf,
            books=training.books,
            tokens=training.tokens,
            report=lambda line: None,
        )
        model = str(folder / "model")
    found = {
        "arm": asdict(arm),
        "curves": _accuracy(training, arm, model) if training.accuracy else [],
        "heads": _heads(training, model),
    }
    write_whole(part, lambda to: to.write_text(json.dumps(found) + "\n", encoding="utf-8"))


def _accuracy(training: Training, arm: Arm, model: str) -> list[dict[str, Any]]:
    """Full attention and exact Top-k over the sweep of budgets, haystack by haystack."""
    study, out = training.study, training.out / RUNS / arm.name
    setting = Setting(
        out=out, model=model, device=training.device, dtype=study.dtype, seed=study.seed[0],
        observe=False, rows=study.batch_size, text=study.text, threads=training.threads,
    )  # fmt: skip
    loaded = load_once(model, training.device, study.dtype)
    run(plan_parts(loaded, setting, study.parts(study.settings)))
    return [
        {
            "title": curve.setting,
            "length": curve.length,
            "cells": ["dense" if cell.budget is None else str(cell.budget) for cell in curve.cells],
            "rates": curve.rates.tolist(),
            "questions": curve.questions.tolist(),
        }
        for curve in load_study(out)
    ]


def _heads(training: Training, model: str) -> list[dict[str, Any]]:
    """The measures of every head, haystack by haystack, of tasks that have answers."""
    study, made = training.study, list[dict[str, Any]]()
    loaded, tokenizer = load_once(model, training.device, study.dtype)
    ratios = [str(k) for k in study.budgets if k.percent]
    text = None if study.text is None else Haystack.of_file(study.text)
    for task, length in study.settings:
        if task.name == "books":
            continue
        prompts = (
            make_prompt(task, tokenizer, length, sample, seed=study.seed[0], haystack=text)
            for sample in range(min(MEASURED, study.at(length)))
        )
        each = [head_measures(loaded, prompt, ratios) for prompt in prompts]
        values = {name: [one[name] for one in each] for name in each[0]}
        made.append({"title": f"{task_name(task)}, {length} tokens", "measures": values})
    return made
