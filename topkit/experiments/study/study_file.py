"""A study as a file: models, tasks, lengths, haystacks and cells, by the name of a preset or by a path."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from topkit.documents import path_of, quote, read_yaml
from topkit.errors import InputError
from topkit.experiments.evaluate.plan import Part
from topkit.experiments.evaluate.setting import ROWS
from topkit.experiments.runs.cells import Cell, in_order
from topkit.experiments.study.keys import PILOT, READERS, Reader, listed, read_keys
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.preset_files import FOLDER, REMEDY, names
from topkit.experiments.tasks import Task, task_name
from topkit.grammar import nearest
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget
from topkit.indexers.equal_bytes import ByteBudget

# A file begins from another one, whose keys it may set anew.
LIKE, DEEPEST = "like", 8
# What a model of several may have of its own.
OWN = ("tasks", "lengths", "haystacks", "budgets", "budget", "indexers", "pilot")


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
    own: what a model has instead.
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
    sparse_from: str = "question"
    observe: bool | str = True
    text: Path | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int = ROWS
    pilot: Pilot | None = field(default_factory=Pilot)
    reach: float | None = None
    about: str = ""
    own: Mapping[str, Study] = field(default_factory=lambda: dict[str, Study]())

    def of(self, model: str) -> Study:
        """What runs on one of its models."""
        return self.own.get(model, self)

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


def read_study(study: str | Path, **over: Any) -> Study:
    """The study of a name or a file; `over` are keys that stand over the file's, None for none.

    Raises: InputError for an unknown name, a file that is no study, and a value that does not do, by its key.
    """
    path = _path(study)
    values = _written(path)
    flags = {key: value for key, value in over.items() if value is not None}
    own = _own(values, str(path))
    made = _made(path, values, flags)
    theirs = {name: _made(path, _with(values, keys), flags) for name, keys in own.items()}
    return replace(made, own={name: one for name, one in theirs.items() if name in made.model})


def _own(values: dict[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    """The keys that models have of their own, which are taken out of a file's models."""
    own: dict[str, Mapping[str, Any]] = {}
    models = listed(values.get("model", ()))
    for place, model in enumerate(models):
        if not isinstance(model, Mapping):
            continue
        entries = list(cast("Mapping[Any, Any]", model).items())
        if len(entries) != 1 or not isinstance(entries[0][1], Mapping):
            raise InputError(
                f"{where}: model: expected one name with keys of its own, as {{reference: {{budgets: 16}}}}; "
                f"got {quote(cast('Mapping[Any, Any]', model))}"
            )
        models[place], keys = entries[0]
        own[str(models[place])] = cast("Mapping[str, Any]", keys)
        for key in keys:
            if key not in OWN:
                raise InputError(
                    f"{where}: model: a model has no {quote(key)} of its own; {nearest(str(key), OWN)}"
                )
    if own:
        values["model"] = models
    return own


def _with(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A file's keys with those of a model over them."""
    pilot = {"pilot": _over(values.get("pilot"), own["pilot"])} if "pilot" in own else {}
    return {**values, **own, **pilot}


def _made(path: Path, values: Mapping[str, Any], flags: dict[str, Any]) -> Study:
    """The study of a file's keys, and of flags that stand over them."""
    if "pilot" in flags:
        flags = flags | {"pilot": _over(values.get("pilot"), flags["pilot"])}
    keys = _read(values, str(path)) | _read(flags, "study")
    if "budgets" in flags and "indexers" not in flags:
        keys["indexers"] = _without_own(keys.get("indexers", ()))
    if "lengths" in flags and "tasks" not in flags:
        keys["tasks"] = _without_own(keys.get("tasks", ()))
    for key in ("tasks", "haystacks", "indexers"):
        if key not in keys:
            raise InputError(f"{path}: {key} is missing; {REMEDY}")
    made = Study(name=path.stem, **keys)
    for part in made.parts(made.settings):  # what lacks a length, a budget or a number
        assert part.cells
    return made


def _path(study: str | Path) -> Path:
    """A study's file; a name stands before a file called so."""
    path = path_of(study, f"a study: a YAML file, or {', '.join(names())}")
    if str(study) in names():
        return FOLDER / f"{study}.yaml"
    if path.suffix in (".yaml", ".yml") or path.is_file() or len(path.parts) > 1:
        return path
    raise InputError(f"unknown study {quote(str(study))}; {nearest(str(study), names())}")


def _written(path: Path, depth: int = 0) -> dict[str, Any]:
    """The keys of a file, behind those of the file that it begins from."""
    values: dict[str, Any] = read_yaml(path, {str: object}, REMEDY)
    like = values.pop(LIKE, None)
    if like is None:
        return values
    if depth == DEEPEST:
        raise InputError(f"{path}: more than {DEEPEST} files begin from one another; {REMEDY}")
    if not isinstance(like, str):
        raise InputError(f"{path}: {LIKE}: expected a study's name or file; got {quote(like)}")
    other = Path(like)
    beside = like not in names() and not other.is_absolute()
    return _written(path.parent / other if beside else _path(like), depth + 1) | values


def _read(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    return read_keys(values, {**READERS, "pilot": _pilot(where), LIKE: _misplaced}, where)


def _pilot(where: str) -> Reader:
    def read(value: Any) -> Pilot | None:
        if isinstance(value, Pilot):
            return value
        if isinstance(value, bool):
            return Pilot() if value else None
        if not isinstance(value, Mapping):
            raise InputError(f"expected true, false or a mapping; got {quote(value)}")
        return Pilot(**read_keys(cast("Mapping[str, Any]", value), PILOT, f"{where}: pilot"))

    return read


def _over(pilot: Any, flag: Any) -> Any:
    """A pilot's keys over those of a file."""
    if not isinstance(pilot, Mapping) or not (flag is True or isinstance(flag, Mapping)):
        return flag
    keys = cast("Mapping[str, Any]", pilot)
    return {**keys, **({} if flag is True else cast("Mapping[str, Any]", flag))}


def _misplaced(value: Any) -> None:
    raise InputError("it stands in files alone")


def _without_own(things: tuple[tuple[Any, Any], ...]) -> tuple[tuple[Any, None], ...]:
    return tuple(dict.fromkeys((thing, None) for thing, _ in things))
