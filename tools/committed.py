"""The committed results: which there are, their curves, and the commands that repeat them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from topkit.experiments.runs import run_file
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.reading import RUNS, STUDY, load_study, study_of
from topkit.experiments.study.study_file import read_study
from topkit.experiments.tasks import task_name
from topkit.experiments.train.arms import DENSE, PARTS

RESULTS = Path(__file__).parents[1] / "results"


def there(*names: str) -> list[str]:
    """Those of some results that are committed."""
    return [name for name in names if (RESULTS / name / STUDY).exists()]


def curves(*names: str) -> Iterator[Curve]:
    """Those of some results, each with its model, which a study of one model leaves to study.json."""
    for name in there(*names):
        said = study_of(RESULTS / name / STUDY).get("model", "")
        for curve in load_study(RESULTS / name):
            yield replace(curve, model=curve.model or said)


def folders(names: Iterable[str]) -> list[str]:
    """The results that numbers are of, a line each, with the command that repeats it."""
    return [f"`results/{name}`: `{command_of(name)}`" for name in names]


def _of_parts(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What a study that trains asked of its models, as its parts have it: run.json leaves that to them."""
    for path in (folder / PARTS / name for name in names):
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for one in [*found.get("curves", []), *found.get("heads", [])]:
            task, _, length = one["title"].rpartition(", ")
            cells = [{"budget": k.replace(DENSE, "")} for k in one.get("cells", [])]
            asked = {"tasks": [{"task": task}], "lengths": [int(length.split()[0])], "cells": cells}
            # Heads are measured on a few of the haystacks.
            yield {**asked, "samples": len(one["questions"])} if "questions" in one else asked


def command_of(name: str) -> str:
    """What made results, by study.json and run.json: a study's name, and what was asked otherwise than it says."""
    folder = RESULTS / name
    about = study_of(folder / STUDY)
    study, said = read_study(about.get("preset", about["study"])), about.get("model", "")
    words = ["topkit", "study", about.get("preset", about["study"])]
    models = said.split(", ") if said else list(study.model)
    if models != list(study.model):
        words += [word for model in models for word in ("--model", model)]
    # Not `study.of`: which groups a model has only the model tells, which need not be here.
    own = [study.own.get(model, study) for model in models if model in study.model] or [study]
    places = [folder / run["folder"] for run in about.get(RUNS, [{"folder": "."}])]
    asked = [one for place in places if (run := run_file.read(place)) for one in run["asked"]]
    if PARTS in about:
        asked = list(_of_parts(folder, about[PARTS]))
        # Its parts are named by the corpus, too; the quick ones do with the excerpt that comes with topkit.
        words += [] if words[2].endswith("-quick") else ["--corpus", "BOOKS"]
    said_so = [study_of(path) for place in places if (path := place / STUDY).exists()]
    ran = {(task["task"], n) for one in asked for task in one["tasks"] for n in one["lengths"]}
    all_ = {(task_name(task), n) for one in own for task, n in one.settings}
    pilots = "; ".join(one["pilot"] for one in said_so if "pilot" in one)
    if not all(f"{task} at {n:,} tokens is left out" in pilots for task, n in all_ - ran):
        tasks = {task for task, _ in ran}
        words += [word for task in sorted(tasks) for word in ("--task", task)]
        lengths = sorted({n for _, n in ran})
        if lengths != sorted({n for task, n in all_ if task in tasks}):
            words += ["--length", ",".join(map(str, lengths))]
    budgets = {cell["budget"] for one in asked for cell in one["cells"]} - {""}
    if budgets and not {str(budget) for one in own for budget in one.budgets} <= budgets:
        words += ["-k", ",".join(sorted(budgets, key=lambda k: float(k.rstrip("%"))))]
    if any(one.pilot is not None for one in own) and not any("pilot" in one for one in said_so):
        words += ["--no-pilot"]
    samples = {one["samples"] for one in asked if "samples" in one}
    if not samples <= {one.at(n) for one in own for _, n in one.settings}:
        words += ["--samples", str(max(samples))]  # of runs that differ, and of parts, the most
    return shlex.join([*words, "--out", f"runs/{name}"])
