"""An evaluation before it runs: what the model can serve, what is left to do, what it costs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.evaluate.accuracy_rows import SCHEMA, in_order
from topkit.experiments.evaluate.finish import finish
from topkit.experiments.evaluate.halves import drop_halves
from topkit.experiments.evaluate.identity import identity_of
from topkit.experiments.evaluate.job import prompt_of, run_job
from topkit.experiments.evaluate.missing import without_keys
from topkit.experiments.evaluate.preflight import require_same
from topkit.experiments.evaluate.request import Part, Request
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.evaluate.size import Size, require_memory, rows_for, size_of
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.load import positions, require_positions
from topkit.experiments.model.outline import attending_to_all, outline
from topkit.experiments.model.own_indexer import own_k
from topkit.experiments.model.record import LayerRecord
from topkit.experiments.runs import folder
from topkit.experiments.runs.cell_parts import parts_of
from topkit.experiments.runs.cells import with_own_k
from topkit.experiments.runs.equal_cells import at_budgets, shape_of
from topkit.experiments.runs.jobs import Job, Runner
from topkit.experiments.runs.lock import by_turns
from topkit.experiments.runs.parts import read_table
from topkit.experiments.runs.plan import Plan
from topkit.experiments.runs.shards import WHOLE, Shard
from topkit.experiments.tasks import Prompt, answer_keys, rule_of, task_name
from topkit.indexers.equal_bytes import ByteBudget


@dataclass(frozen=True)
class Share:
    """One part of a run: its jobs, and what they cost."""

    part: Part
    jobs: int
    done: int
    size: Size


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan(Plan[pa.Table]):
    """An evaluation: a job a haystack and batch of cells. Rows are of accuracy; estimates: see Size."""

    request: Request = field(repr=False)
    shares: tuple[Share, ...] = field(repr=False)
    # A model of this process and its tokenizer, where its jobs share one.
    loaded: tuple[PreTrainedModel, Any] | None = field(default=None, repr=False)
    # Whether another process that writes to the folder is waited for.
    waits: bool = False
    # Observed tasks whose answers stand nowhere that is known.
    keyless: tuple[str, ...] = ()
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
        alike: dict[tuple[int, int], list[Share]] = {}
        for share in self.shares:
            alike.setdefault((share.part.haystacks, len(share.part.cells)), []).append(share)
        return [
            f"{sum(one.jobs for one in some)} jobs, {sum(one.done for one in some)} of them done: "
            f"{haystacks} haystacks of each task and length, {cells} cells"
            for (haystacks, cells), some in alike.items()
        ]

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        request, out = self.request, self.out
        contents = request.contents()
        who = folder.Who(request.shard, request.digest, self.waits)
        with folder.claim(out, request.identity, contents, who, force=request.force) as hold:
            run = request.describe()
            if hold.alone:
                drop_halves(out)
                folder.settle(out, run)
            jobs = [job for some in request.left(run=run) for job in some]
            model = () if self.loaded is None else (self.loaded,)
            hold.begun()
            yield [replace(job, arguments=(*job.arguments, *model)) for job in jobs]

    def result(self, results: Sequence[None]) -> pa.Table:
        if self.request.shard.whole:
            return finish(self.out)
        with by_turns(self.out):
            if not self.left_over:
                finish(self.out)
        own = (piece for pieces in self.request.pieces(self.request.shard) for piece in pieces)
        names = parts_of(self.out / "accuracy", {piece.name for piece in own})
        rows = read_table(self.out / "accuracy", names=names) if names else SCHEMA.empty_table()
        return in_order(rows)

    @property
    def left_over(self) -> int:
        whole = self.request.shard.whole
        return 0 if whole else sum(map(len, self.request.left(shard=WHOLE)))


def plan_parts(
    loaded: tuple[PreTrainedModel, Any],
    setting: Setting,
    parts: Sequence[Part],
    *,
    workers: int = 1,
    force: bool = False,
    share: bool = False,
    notes: Sequence[str] = (),
    runner: Runner | None = None,
    shard: Shard = WHOLE,
    waits: bool = False,
    budgets: Sequence[ByteBudget] = (),
    leave_out: bool = False,
) -> EvaluatePlan:
    """The plan of some parts for a model and its tokenizer; `share`: jobs use this very model.

    waits: for another process that writes to the folder, which may do the same. budgets: of bytes, at which
    indexers that read more are refused, or left out.

    Raises: InputError for a model that cannot serve a cell or a length, a task that does not fit into
    its length, and a folder that holds another run (unless `force`).
    """
    model, tokenizer = loaded
    notes = [*notes, *(line for part in parts for line in _short(part))]
    parts = [some for part in parts for some in part.as_files_allow()]
    longest = max(length for part in parts for length in part.lengths)
    parts = [replace(p, cells=tuple(with_own_k(p.cells, own_k(model), longest))) for p in parts]
    records = _require_served(model, parts)
    parts, lines = _at_budgets(parts, budgets, records, leave_out)
    notes += lines
    line = outline(model, records, attending_to_all(records, longest))
    rows = _rows(model, records, parts, setting, tokenizer)
    if rows < setting.rows:
        notes.append(f"{rows} rows of {setting.rows} go together, to keep to {setting.memory:g} GB")
        setting = replace(setting, rows=rows)
    shard.require_no(force, setting.out)
    request = Request(setting, tuple(parts), identity_of(setting, model, tokenizer), force, shard)
    folder.require_same(setting.out, request.identity, request.contents(), force=force)
    left = request.left(force)
    # A length too short for any haystack is refused before anything is touched.
    _require_prompts(left, tokenizer, positions(model))
    prompts = [_prompts(setting, part, tokenizer) for part in parts]
    keyless = _keyless(setting, parts, prompts, tokenizer)
    notes += without_keys(keyless)
    shares = []
    pieces = request.pieces(shard)
    for part, its, some, shown in zip(parts, pieces, left, prompts, strict=True):
        every = len(its)
        size = size_of(model, records, shown, part.haystacks, part.cells, setting)
        require_memory(model, records, shown, part.cells, setting)
        shares.append(Share(part, every, every - len(some), size))
    return EvaluatePlan(
        jobs=tuple(job for some in left for job in some),
        done=sum(share.done for share in shares),
        rows=sum(share.size.rows for share in shares),
        bytes=sum(share.size.bytes for share in shares),
        memory=max(share.size.memory for share in shares) * workers,
        workers=workers,
        runner=runner,
        shares_model=share,
        notes=(line, *notes, *shard.notes),
        request=request,
        shares=tuple(shares),
        loaded=loaded if share else None,
        waits=waits,
        keyless=keyless,
    )


def _at_budgets(
    parts: list[Part],
    budgets: Sequence[ByteBudget],
    records: Mapping[int, LayerRecord],
    leave_out: bool,
) -> tuple[list[Part], list[str]]:
    """The parts with cells of equal bytes, each length its own; and what is said of them."""
    if not budgets:
        return parts, []
    made, notes = list[Part](), dict[str, None]()
    one = records[min(records)]
    for part in parts:
        for length in part.lengths:
            shape = shape_of(one.queries, one.keys, one.values, length)
            equal = at_budgets(part.cells, budgets, shape, leave_out=leave_out)
            made.append(replace(part, lengths=(length,), cells=equal.cells))
            notes |= dict.fromkeys(equal.notes)
    return made, list(notes)


def _rows(
    model: PreTrainedModel,
    records: Mapping[int, LayerRecord],
    parts: Sequence[Part],
    setting: Setting,
    tokenizer: Any,
) -> int:
    """How many rows go together in all parts, as far as a process may take memory for them."""
    if setting.memory is None:
        return setting.rows
    return min(
        rows_for(model, records, _prompts(setting, part, tokenizer), part.cells, setting)
        for part in parts
    )


def _short(part: Part) -> list[str]:
    """A line for each task that has fewer prompts than are asked for."""
    return [
        f"{task_name(task)} has {most:,} prompts, of {part.haystacks:,} samples asked for"
        for task in part.tasks
        if (most := task.most_samples()) is not None and most < part.haystacks
    ]


def _require_served(model: PreTrainedModel, parts: Sequence[Part]) -> dict[int, LayerRecord]:
    """Refuse what the model cannot serve; returns the records of a short pass."""
    longest = max(length for part in parts for length in part.lengths)
    require_positions(model, longest)
    records = probe(model, purpose="evaluated", softmax=True)
    recipes = dict.fromkeys(
        c.indexer for part in parts for c in part.cells if c.indexer is not None
    )
    for reason in unserved(model, recipes, records).values():
        raise InputError(reason)
    require_same(model, longest)
    return records


def _require_prompts(left: Sequence[Sequence[Job]], tokenizer: Any, limit: int | None) -> None:
    """Make every prompt that is left to be asked, once.

    Raises: InputError as tasks do, for an unknown rule, and for one that goes beyond the model's positions:
    a prompt may hold more than its label says.
    """
    there: set[tuple[Any, ...]] = set()
    for setting, piece in (job.arguments for some in left for job in some):
        place = piece.task, piece.length, piece.sample
        if place not in there:
            there.add(place)
            made = prompt_of(setting, *place, tokenizer)
            rule_of(made.rule)
            longest = max(made.tokens(n) + len(q.answer_ids) for n, q in enumerate(made.questions))
            if limit is not None and longest > limit:
                raise InputError(
                    f"prompt {piece.sample} of {task_name(piece.task)} holds {longest:,} tokens with its "
                    f"answer, beyond the {limit:,} positions of the model; ask for a shorter length"
                )


def _keyless(
    setting: Setting, parts: Sequence[Part], prompts: Sequence[Sequence[Prompt]], tokenizer: Any
) -> tuple[str, ...]:
    """The tasks whose answers stand nowhere that is known, by their first prompts."""
    if not setting.observe or not any(c.indexer for part in parts for c in part.cells):
        return ()
    known = dict[str, bool]()
    for part, shown in zip(parts, prompts, strict=True):
        tasks = [task_name(task) for task in part.tasks for _ in part.lengths]
        for name, made in zip(tasks, shown, strict=True):
            known[name] = known.get(name, False) or answer_keys(made, tokenizer) is not None
    return tuple(name for name, its in known.items() if not its)


def _prompts(setting: Setting, part: Part, tokenizer: Any) -> list[Prompt]:
    """The first prompt of each task and length."""
    return [
        prompt_of(setting, task, length, 0, tokenizer)
        for task in part.tasks
        for length in part.lengths
    ]
