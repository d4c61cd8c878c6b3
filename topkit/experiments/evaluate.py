"""model + tasks + indexers -> accuracy, with the fidelity observed in the same run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel

import topkit
from topkit.errors import InputError
from topkit.experiments.accuracy import KEYS, SCHEMA, accuracy_rows, write_predictions
from topkit.experiments.answers import Haystack
from topkit.experiments.cells import Cell, chunks, parse_cells
from topkit.experiments.digests import tokenizer_digest, weights_digest
from topkit.experiments.models import load_once, require_positions
from topkit.experiments.runs import claim, describe, done, part_name, with_cells
from topkit.experiments.served import probe, unserved
from topkit.experiments.tables import Job, digest, read_table, runner, write_part
from topkit.experiments.tasks import Haystack as Text
from topkit.experiments.tasks import Prompt, Task, make_task, task_name
from topkit.experiments.trial import require_same
from topkit.experiments.witness import fidelity_table
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget

SPARSE_FROM = ("question", "answer")
# Rows of one forward pass, unless asked otherwise: cells times questions of one haystack.
ROWS = 128


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run have in common; a worker loads the model from it."""

    out: Path
    model: str
    device: str | None
    dtype: str | None
    seed: int
    sparse_from: str
    observe: bool | str
    rows: int
    text: Path | None
    threads: int | None = None


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
            _prompt(setting, task, length, 0, loaded[1])
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


@dataclass(frozen=True)
class Piece:
    """One job's share: a haystack of a task, and some cells, in their order."""

    task: Task
    length: int
    sample: int
    cells: tuple[Cell, ...]
    name: str

    @property
    def part(self) -> str:
        """The name of the parts that hold its rows; that of the haystack stands first."""
        return part_name(self.name, self.cells)


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


def run_job(setting: Setting, piece: Piece, loaded: tuple | None = None) -> None:
    """Compute one piece and write its parts; accuracy last, for it says that the piece is done."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    model, tokenizer = loaded or load_once(setting.model, setting.device, setting.dtype)
    prompt = _prompt(setting, piece.task, piece.length, piece.sample, tokenizer)
    haystack = Haystack(
        model,
        prompt,
        piece.cells,
        context=piece.length,
        seed=setting.seed,
        observe=setting.observe,
    )
    answers = haystack.answers(setting.sparse_from, setting.rows)
    constants = {
        "task": task_name(piece.task),
        "length": piece.length,
        "haystack": piece.sample,
        "sparse_from": setting.sparse_from,
    }
    dense = answers[Cell()]
    rows = [
        row
        for cell in piece.cells
        for row in accuracy_rows(
            prompt, constants, cell, answers[cell], dense, piece.length, tokenizer
        )
    ]
    if haystack.fidelity:
        write_part(
            setting.out / "fidelity",
            piece.part,
            fidelity_table(haystack.fidelity, constants | {"sample": piece.sample}),
        )
    table = with_cells(pa.Table.from_pylist(rows, SCHEMA), piece.cells)
    write_part(setting.out / "accuracy", piece.part, table)


def _prompt(setting: Setting, task: Task, length: int, sample: int, tokenizer: Any) -> Prompt:
    text = None if setting.text is None else Text.of_file(setting.text)
    return task.sample(tokenizer, length, sample, seed=setting.seed, haystack=text)


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
