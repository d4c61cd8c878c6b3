"""Tasks in RULER's manner (arXiv 2404.06654), in wordings of topkit's own."""

from __future__ import annotations

from typing import Any

from topkit.experiments.tasks.base import Prompt, Question, Task, ruler_score
from topkit.experiments.tasks.books import Books
from topkit.experiments.tasks.chains import VariableTracking
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.needles import MultiKey, MultiQuery, MultiValue, Single, Word
from topkit.experiments.tasks.pairs import KeyValueRecall
from topkit.experiments.tasks.recite import Recite
from topkit.grammar import Registry, flat, make

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

REGISTRY: Registry[Task] = Registry(
    "task", Task, TASKS, "topkit.tasks", "niah-multikey:distractors=4"
)


def make_task(text: str, /, **parameters: Any) -> Task:
    """The task that a text names, or that a name and its parameters say.

    Raises: InputError for a text that does not parse, an unknown name or a misspelt parameter (the
    nearest is suggested), and a value of another type, or that the task refuses.
    """
    return make(text, REGISTRY, **parameters)


def task_name(task: Task) -> str:
    """A task as tables name it: `niah-multikey:wording=trained`."""
    return flat(task)


__all__ = [
    "REGISTRY",
    "TASKS",
    "Haystack",
    "Prompt",
    "Question",
    "Task",
    "make_task",
    "ruler_score",
    "task_name",
]
