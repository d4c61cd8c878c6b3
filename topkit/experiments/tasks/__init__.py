"""Tasks in RULER's manner (arXiv 2404.06654), in wordings of topkit's own."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from topkit.errors import InputError
from topkit.experiments.tasks.base import Prompt, Question, Task, ruler_score
from topkit.experiments.tasks.books import Books
from topkit.experiments.tasks.chains import VariableTracking
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.needles import MultiKey, MultiQuery, MultiValue, Single, Word
from topkit.experiments.tasks.pairs import KeyValueRecall
from topkit.experiments.tasks.recite import Recite
from topkit.indexers.spec import nearest

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Single,
        MultiKey,
        MultiValue,
        MultiQuery,
        VariableTracking,
        KeyValueRecall,
        Recite,
        Word,
        Books,
    )
}


# What may be given for a parameter of each type.
_KINDS: dict[str, type] = {"int": Integral, "float": Real, "str": str}


def make_task(name: str, /, **parameters: Any) -> Task:
    """The task of that name, with its parameters.

    Raises: InputError for an unknown task or a misspelt parameter, with the nearest, and for a value
    of another type.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; {nearest(name, TASKS)}")
    known = {field.name: field.type for field in fields(TASKS[name])}
    for parameter, value in parameters.items():
        if parameter not in known:
            raise InputError(f"{name} has no parameter {parameter!r}; {nearest(parameter, known)}")
        if isinstance(value, bool) or not isinstance(value, _KINDS[str(known[parameter])]):
            raise InputError(f"{name}: {parameter} must be {known[parameter]}; got {value!r}")
    return TASKS[name](**parameters)


def task_name(task: Task) -> str:
    """A task as tables name it, and the command line reads it: its name, and what is not default."""
    plain = type(task)()
    odd = [
        f"{name}={getattr(task, name)}"
        for name in task.__dataclass_fields__
        if getattr(task, name) != getattr(plain, name)
    ]
    return f"{task.name}:{','.join(odd)}" if odd else task.name


__all__ = [
    "TASKS",
    "Haystack",
    "Prompt",
    "Question",
    "Task",
    "make_task",
    "ruler_score",
    "task_name",
]
