"""An evaluation before it runs: which haystacks are asked of which cells, and what that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from transformers import PreTrainedModel

import topkit
from topkit.errors import InputError
from topkit.experiments.evaluate.accuracy_rows import KEYS, write_predictions
from topkit.experiments.evaluate.condense import CONDENSED, keep_condensed
from topkit.experiments.evaluate.job import Piece, Setting, prompt_of, run_job
from topkit.experiments.evaluate.preflight import require_same
from topkit.experiments.evaluate.size import Size, size_of
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.digests import tokenizer_digest, weights_digest
from topkit.experiments.model.load import require_positions
from topkit.experiments.runs import folder
from topkit.experiments.runs.cells import Cell, chunks
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import digest, read_table
from topkit.experiments.runs.plan import Plan
from topkit.experiments.tasks import Haystack as Text
from topkit.experiments.tasks import Prompt, Task, task_name


@dataclass(frozen=True)
class Part:
    """Tasks that are asked at some lengths, each on so many haystacks, of some cells."""

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    haystacks: int
    cells: tuple[Cell, ...]

    def pieces(self, setting: Setting, identity: dict[str, Any]) -> Iterator[Piece]:
        """The jobs. Which cells go together depends on what the run is, never on what is done."""
        for task in self.tasks:
            for length in self.lengths:
                for sample in range(self.haystacks):
                    inputs = {
                        **identity,
                        "task": repr(task),
                        "length": length,
                        "sample": sample,
                        "sparse_from": setting.sparse_from,
                    }
                    for some in chunks(self.cells, setting.rows):
                        yield Piece(task, length, sample, tuple(some), digest(inputs))

    @property
    def columns(self) -> list[dict[str, str]]:
        """What names the cells in every table."""
        return [cell.columns for cell in self.cells]


@dataclass(frozen=True)
class Request:
    """All that is to be evaluated into a folder, whatever is done already."""

    setting: Setting
    parts: tuple[Part, ...]
    identity: dict[str, Any]
    force: bool

    def left(self, afresh: bool = False) -> list[list[Job]]:
        """The jobs of each part, for the cells that no table holds; for all, where all is afresh.

        What was under way when a run died is not there.
        """
        accuracy = self.setting.out / "accuracy"
        there: set[tuple[str, ...]] = set() if afresh else set(folder.done(accuracy))
        jobs: list[list[Job]] = []
        for part in self.parts:
            jobs.append([])
            for piece in part.pieces(self.setting, self.identity):
                names = {cell: (piece.name, *cell.columns.values()) for cell in piece.cells}
                cells = tuple(cell for cell in piece.cells if names[cell] not in there)
                there.update(names.values())
                if cells:
                    inputs = {"haystack": piece.name, "cells": [cell.columns for cell in cells]}
                    jobs[-1].append(Job(inputs, (self.setting, replace(piece, cells=cells))))
        return jobs

    def describe(self) -> None:
        """Write run.json: what the rows were made from, and by what."""
        for part in self.parts:
            folder.describe(
                self.setting.out,
                self.identity,
                model=self.setting.model,
                tasks=[{"task": task_name(task), **asdict(task)} for task in part.tasks],
                lengths=list(part.lengths),
                samples=part.haystacks,
                cells=part.columns,
                sparse_from=self.setting.sparse_from,
                rows=self.setting.rows,
            )


@dataclass(frozen=True)
class Share:
    """What one part of a run comes to."""

    part: Part
    jobs: int
    done: int
    size: Size


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan(Plan[pa.Table]):
    """An evaluation: a job a haystack and batch of cells. Rows are of accuracy; estimates: see Size."""

    request: Request = field(repr=False)
    shares: tuple[Share, ...] = field(repr=False)
    # A model of this process and its tokenizer, where the run is given one.
    loaded: tuple[PreTrainedModel, Any] | None = field(default=None, repr=False)
    verb: ClassVar[str] = "evaluating"
    work: ClassVar[Any] = staticmethod(run_job)

    @property
    def out(self) -> Path:
        """The run's folder."""
        return self.request.setting.out

    def describe(self) -> list[dict[str, Any]]:
        return [
            {
                "out": str(self.out),
                "jobs": share.jobs,
                "done": share.done,
                "haystacks": share.part.haystacks,
                "lengths": list(share.part.lengths),
                "tasks": [task_name(task) for task in share.part.tasks],
                "cells": share.part.columns,
                **asdict(share.size),
                "memory": share.size.memory * self.workers,
            }
            for share in self.shares
        ]

    def lines(self) -> list[str]:
        return [
            f"{share.jobs} jobs, {share.done} of them done: {share.part.haystacks} haystacks of each "
            f"task and length, {len(share.part.cells)} cells"
            for share in self.shares
        ]

    @contextmanager
    def opened(self) -> Iterator[Sequence[Job]]:
        request, out = self.request, self.out
        tables = ["accuracy", "fidelity", *CONDENSED]
        with folder.claim(out, request.identity, tables, force=request.force):
            _drop_orphans(out)
            request.describe()
            jobs = [job for some in request.left() for job in some]
            given = () if self.loaded is None else (self.loaded,)
            yield [replace(job, arguments=(*job.arguments, *given)) for job in jobs]

    def result(self, results: Sequence[None]) -> pa.Table:
        out = self.out
        table = read_table(out / "accuracy").sort_by([(key, "ascending") for key in KEYS])
        write_predictions(table, out / "predictions.jsonl")
        keep_condensed(out)
        return table


def plan_parts(
    loaded: tuple[PreTrainedModel, Any],
    setting: Setting,
    parts: Sequence[Part],
    *,
    workers: int = 1,
    force: bool = False,
    share: bool = False,
    notes: Sequence[str] = (),
) -> EvaluatePlan:
    """The plan of some parts for a model and its tokenizer; `share`: jobs use this very model.

    Raises: InputError for a model that cannot serve a cell or a length, a task that does not fit into
    its length, and a folder that holds another run (unless `force`).
    """
    model, tokenizer = loaded
    seen = _require_served(model, parts)
    request = Request(setting, tuple(parts), _identity(setting, model, tokenizer), force)
    # A length too short is refused before anything is touched.
    prompts = [_prompts(setting, part, tokenizer) for part in parts]
    if not force:
        folder.require_same(setting.out, request.identity)
    left = request.left(force)
    shares = []
    for part, some, shown in zip(parts, left, prompts, strict=True):
        every = sum(1 for _ in part.pieces(setting, request.identity))
        size = size_of(model, seen, shown, part.haystacks, part.cells, setting)
        shares.append(Share(part, every, every - len(some), size))
    return EvaluatePlan(
        jobs=tuple(job for some in left for job in some),
        done=sum(share.done for share in shares),
        rows=sum(share.size.rows for share in shares),
        bytes=sum(share.size.bytes for share in shares),
        memory=max(share.size.memory for share in shares) * workers,
        workers=workers,
        shares_model=share,
        notes=tuple(notes),
        request=request,
        shares=tuple(shares),
        loaded=loaded if share else None,
    )


def _require_served(model: PreTrainedModel, parts: Sequence[Part]) -> dict[int, Any]:
    """Refuse what the model cannot serve; gives what its attention sees in a short pass."""
    longest = max(length for part in parts for length in part.lengths)
    require_positions(model, longest)
    seen = probe(model, purpose="evaluated")
    recipes = dict.fromkeys(
        c.indexer for part in parts for c in part.cells if c.indexer is not None
    )
    for reason in unserved(model, recipes, seen).values():
        raise InputError(reason)
    require_same(model, longest)
    return seen


def _prompts(setting: Setting, part: Part, tokenizer: Any) -> list[Prompt]:
    """The first prompt of each task and length."""
    return [
        prompt_of(setting, task, length, 0, tokenizer)
        for task in part.tasks
        for length in part.lengths
    ]


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
