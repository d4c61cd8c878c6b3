"""What a study runs: models, tasks, lengths, haystacks, cells, and the pilot before it."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from topkit.errors import InputError
from topkit.experiments.evaluate.plan import Part
from topkit.experiments.evaluate.setting import ROWS
from topkit.experiments.runs.cells import Cell, in_order
from topkit.experiments.study.each_group import in_each_group
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.law import Law
from topkit.experiments.tasks import Task, task_name
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget
from topkit.indexers.equal_bytes import ByteBudget


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What places the difficulty before the study runs, on haystacks of its own.

    budgets: three of exact Top-k's where none are named. distractors, lengths: ladders, the first that
    suits is chosen; without them the study's own tasks and lengths are kept or left out.
    dense_at_least, exact_between: where full attention must score, and exact Top-k at some budget.
    """

    haystacks: int = 8
    budgets: tuple[Budget, ...] = ()
    distractors: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    dense_at_least: float = 0.8
    exact_between: tuple[float, float] = (0.3, 0.95)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study runs; a task or an indexer may name lengths or budgets of its own.

    budget: of bytes, at which indexers read alike. reach: half the width of an interval on an accuracy, at most.
    margin: within which exact Top-k is to equal full attention; None where that is not asked. predict: whether the
    report says how well each metric predicts accuracy. law: a registered one, put to the test.
    leaderboard: whether recipes are ranked. groups: the KV groups in which alone each poor indexer is exact, all
    where none is named; None: that is not asked. own: what a model has instead.
    """

    name: str
    model: tuple[str, ...] = ("reference",)
    tasks: tuple[tuple[Task, tuple[int, ...] | None], ...]
    lengths: tuple[int, ...] = ()
    haystacks: int | dict[int, int]
    budgets: tuple[Budget, ...] = ()
    budget: tuple[ByteBudget, ...] = ()
    indexers: tuple[tuple[Indexer, tuple[Budget, ...] | None], ...]
    seed: tuple[int, ...] = (0,)
    sparse_from: tuple[str, ...] = ("question",)
    observe: bool | str = True
    shadow: bool = False
    text: Path | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int = ROWS
    pilot: Pilot | None = field(default_factory=Pilot)
    reach: float | None = None
    margin: float | None = None
    predict: bool = False
    law: Law | None = None
    leaderboard: bool = False
    groups: tuple[tuple[int, int], ...] | None = None
    about: str = ""
    own: Mapping[str, Study] = field(default_factory=lambda: dict[str, Study]())

    def of(self, model: str) -> Study:
        """What runs on one of its models. Raises: InputError for groups that it has not."""
        own = self.own.get(model, self)
        if own.groups is None:
            return own
        mended = in_each_group(own.indexers, own.groups, model, own.device, own.dtype)
        return replace(own, indexers=mended, groups=None)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every indexer at its budgets, and full attention."""
        cells = {Cell()}
        for indexer, own in self.indexers:
            if not (own or self.budgets):
                raise InputError(f"{indexer} has no budget; say `budgets`, or -k 16")
            cells |= {Cell(indexer, budget) for budget in own or self.budgets}
        return tuple(in_order(cells))

    @property
    def settings(self) -> tuple[tuple[Task, int], ...]:
        """Every task at its lengths."""
        for task, own in self.tasks:
            if not (own or self.lengths):
                raise InputError(f"{task.name} has no length; say `lengths`, or --length 4k")
        return tuple((task, n) for task, own in self.tasks for n in own or self.lengths)

    def at(self, length: int) -> int:
        """The haystacks of each task at a length."""
        if isinstance(self.haystacks, int):
            return self.haystacks
        if length not in self.haystacks:
            known = ", ".join(f"{n:,}" for n in self.haystacks)
            raise InputError(
                f"haystacks says no number for a length of {length:,} (but for {known}); say one, or "
                "--haystacks"
            )
        return self.haystacks[length]

    def parts(self, settings: tuple[tuple[Task, int], ...], *left_out: Indexer) -> list[Part]:
        """Tasks at lengths as parts of an evaluation, those of one length and number together."""
        cells = tuple(cell for cell in self.cells if cell.indexer not in left_out)
        groups: dict[tuple[int, int], dict[Task, None]] = {}
        for task, length in settings:
            groups.setdefault((length, self.haystacks_of(task, length)), {})[task] = None
        return [
            Part(tuple(tasks), (length,), number, cells)
            for (length, number), tasks in groups.items()
        ]

    def haystacks_of(self, task: Task, length: int) -> int:
        """The haystacks of a task: of a short file, those that its pilot leaves."""
        number, most = self.at(length), task.most_samples()
        if self.pilot is None or most is None or number + self.pilot.haystacks <= most:
            return number
        if most <= self.pilot.haystacks:
            raise InputError(
                f"{task_name(task)} has {most:,} prompts, no more than its pilot takes; ask for a smaller "
                "one, as --pilot-haystacks 2, or go without with --no-pilot"
            )
        return most - self.pilot.haystacks

    @property
    def short_files(self) -> list[str]:
        """A line for each task whose file has too few prompts for what is asked for and a pilot."""
        lines: list[str] = []
        for task, length in self.settings:
            number = self.haystacks_of(task, length)
            if number < self.at(length):
                lines.append(
                    f"{task_name(task)} has {task.most_samples():,} prompts: {number:,} for the study, of "
                    f"{self.at(length):,} asked for, and the rest for its pilot"
                )
        return list(dict.fromkeys(lines))

    @property
    def exact_budgets(self) -> list[Budget]:
        """Three budgets of exact Top-k for a pilot: the least, the middle and the largest."""
        every = [cell.budget for cell in self.cells if cell.indexer == EXACT and cell.budget]
        every = every or [cell.budget for cell in self.cells if cell.budget]
        every = sorted(set(every), key=lambda k: k.at(max(n for _, n in self.settings)))
        return list(dict.fromkeys([every[0], every[len(every) // 2], every[-1]])) if every else []
