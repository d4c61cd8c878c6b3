"""model + tasks + indexers -> accuracy, with the fidelity observed in the same run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel

import topkit
from topkit.errors import InputError
from topkit.experiments.evaluate.accuracy_rows import (
    KEYS,
    write_predictions,
)
from topkit.experiments.evaluate.job import Piece, Setting, prompt_of, run_job
from topkit.experiments.evaluate.preflight import require_same
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.digests import tokenizer_digest, weights_digest
from topkit.experiments.model.load import load_once, require_positions
from topkit.experiments.runs.cells import Cell, chunks, parse_cells
from topkit.experiments.runs.folder import claim, describe, done
from topkit.experiments.runs.jobs import Job, runner
from topkit.experiments.runs.parts import digest, read_table
from topkit.experiments.tasks import Haystack as Text
from topkit.experiments.tasks import Task, make_task, task_name
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget

SPARSE_FROM = ("question", "answer")
# Rows of one forward pass, unless asked otherwise: cells times questions of one haystack.
ROWS = 128


def evaluate(
    model: str | Path | PreTrainedModel,
    tasks: str | Task | Sequence[str | Task],
    lengths: int | Sequence[int],
    samples: int,
    indexers: str | Indexer | Cell | Sequence[str | Indexer | Cell] = (),
    k: str | int | Budget | list | tuple = (),
    *,
    out: str | Path,
    sparse_from: str = "question",
    dense: bool = True,
    observe: bool | str = True,
    text: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    jobs: int = 1,
    batch_size: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    tokenizer: Any = None,
    on_plan: Callable[[dict[str, Any]], object] = lambda plan: None,
) -> pa.Table | None:
    """Ask a model the questions of some tasks, each time with other keys left out of its attention.

    Every haystack is prefilled dense. What comes after it goes through the selector: the question
    and the answer (sparse_from="question"), or, as in the paper's protocol, the answer alone
    (sparse_from="answer"): the question's last token is then the first to go through it, for that
    step gives the first token of the answer. A rerun computes what is missing, also when cells or
    samples were added. observe: fidelity at the answer's positions, averaged over them; "rows" keeps
    each; False none. k in per cent counts of the length. on_plan is given what is going to be done.
    Files: out/accuracy and out/fidelity (Parquet), out/predictions.jsonl, out/run.json.
    Returns: the accuracy rows, or None for dry_run.
    Raises: InputError for bad input, and a folder that holds another run (unless `force`).
    """
    if samples < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(f"samples and batch_size must be at least 1; got {samples}, {batch_size}")
    if sparse_from not in SPARSE_FROM:
        raise InputError(f"sparse_from must be question or answer; got {sparse_from!r}")
    if observe not in (True, False, "rows"):
        raise InputError(f"observe must be True, False or 'rows'; got {observe!r}")
    cells = parse_cells(indexers, k, dense)
    asked = _listed(tasks, lambda task: make_task(task) if isinstance(task, str) else task)
    given = isinstance(model, PreTrainedModel)
    if given and (tokenizer is None or jobs > 1):
        raise InputError("a loaded model needs its tokenizer, and runs with jobs=1")
    setting = Setting(
        Path(out),
        str(model) if not given else "",
        device,
        dtype,
        seed,
        sparse_from,
        observe,
        batch_size or ROWS,
        None if text is None else Path(text),
        None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs),
    )
    run_jobs = runner(jobs)
    lengths = _listed(lengths, int)
    loaded = (model, tokenizer) if given else load_once(setting.model, device, dtype)
    require_positions(loaded[0], max(lengths))
    recipes = [cell.indexer for cell in cells if cell.indexer is not None]
    for reason in unserved(loaded[0], recipes, probe(loaded[0], purpose="evaluated")).values():
        raise InputError(reason)
    require_same(loaded[0], max(lengths))
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    identity = _identity(setting, *loaded)
    for task in asked:
        for length in lengths:  # a length too short is refused before anything is touched
            prompt_of(setting, task, length, 0, loaded[1])
    planned = list(_plan(setting, identity, asked, lengths, samples, cells))
    tables = ["accuracy", "fidelity"]
    with claim(setting.out, identity, tables, force=force, dry=dry_run):
        there = set() if force else set(done(setting.out / "accuracy"))
        missing = _missing(setting, planned, there)
        console.print(
            f"{len(planned)} jobs, {len(planned) - len(missing)} of them done: "
            f"{samples} haystacks of each task and length, {len(cells)} cells"
        )
        plan = {"jobs": len(planned), "done": len(planned) - len(missing), "haystacks": samples}
        plan |= {"lengths": lengths, "tasks": [task_name(task) for task in asked]}
        on_plan({"out": str(out), **plan, "cells": [cell.columns for cell in cells]})
        if dry_run:
            return None
        _drop_orphans(setting.out)
        _describe(setting, identity, asked, lengths, samples, cells)
        if given:
            missing = [replace(job, arguments=(*job.arguments, loaded)) for job in missing]
        results = run_jobs(run_job, missing)
        for _ in track(results, "evaluating", len(missing), console=console, disable=quiet):
            pass
        table = read_table(setting.out / "accuracy").sort_by([(key, "ascending") for key in KEYS])
        write_predictions(table, setting.out / "predictions.jsonl")
    return table


def _listed(given: Any, made: Callable[[Any], Any]) -> list[Any]:
    """What is made of one or several, each once."""
    given = [given] if isinstance(given, str | int | Task) else given
    return list(dict.fromkeys(map(made, given)))


def _plan(
    setting: Setting,
    identity: dict[str, Any],
    tasks: Sequence[Task],
    lengths: Sequence[int],
    samples: int,
    cells: Sequence[Cell],
) -> Iterator[Piece]:
    """All pieces. Which cells go together depends on what is asked, never on what is done."""
    for task in tasks:
        for length in lengths:
            for sample in range(samples):
                inputs = {
                    **identity,
                    "task": repr(task),
                    "length": length,
                    "sample": sample,
                    "sparse_from": setting.sparse_from,
                }
                for some in chunks(cells, setting.rows):
                    yield Piece(task, length, sample, tuple(some), digest(inputs))


def _missing(
    setting: Setting, pieces: Sequence[Piece], there: set[tuple[str, str, str]]
) -> list[Job]:
    """Jobs for the cells that no part holds yet; a part under way when a run died is not there."""
    jobs = []
    for piece in pieces:
        left = tuple(c for c in piece.cells if (piece.name, *c.columns.values()) not in there)
        if left:
            left = replace(piece, cells=left)
            inputs = {"haystack": piece.name, "cells": [cell.columns for cell in left.cells]}
            jobs.append(Job(inputs, (setting, left)))
    return jobs


def _drop_orphans(out: Path) -> None:
    """Accuracy is written last: fidelity without it is of a piece that was never finished."""
    for path in (out / "fidelity").glob("*.parquet"):
        if not (out / "accuracy" / path.name).exists():
            path.unlink()


def _identity(setting: Setting, model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """All that the rows depend on, beside task, length, sample and cell."""
    return {
        "weights": weights_digest(model),
        "tokenizer": tokenizer_digest(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "seed": setting.seed,
        "text": "" if setting.text is None else digest(Text.of_file(setting.text).sentences),
        # The same accuracy observed in two ways would stand there twice.
        "observe": setting.observe,
        "topkit": topkit.__version__,
    }


def _describe(
    setting: Setting,
    identity: dict[str, Any],
    tasks: Sequence[Task],
    lengths: Sequence[int],
    samples: int,
    cells: Sequence[Cell],
) -> None:
    """Write run.json: what the rows were made from, and by what."""
    describe(
        setting.out,
        identity,
        model=setting.model,
        tasks=[{"task": task_name(task), **asdict(task)} for task in tasks],
        lengths=list(lengths),
        samples=samples,
        cells=[cell.columns for cell in cells],
        sparse_from=setting.sparse_from,
        rows=setting.rows,
    )
