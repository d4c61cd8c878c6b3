"""Tasks in RULER's manner (arXiv 2404.06654), in wordings of topkit's own. Imports no other room of experiments."""

from __future__ import annotations

import traceback
from typing import Any

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.tasks.answer_keys import AnswerKeys, answer_keys, first_key
from topkit.experiments.tasks.base import Task
from topkit.experiments.tasks.books import Books
from topkit.experiments.tasks.chains import VariableTracking
from topkit.experiments.tasks.files.longbench import LongBench
from topkit.experiments.tasks.files.lost import LostInTheMiddle
from topkit.experiments.tasks.files.nolima import NoLiMa
from topkit.experiments.tasks.files.rules import OF_FORMATS
from topkit.experiments.tasks.files.task import FileTask
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.helmet.task import Helmet
from topkit.experiments.tasks.mqar import Recall
from topkit.experiments.tasks.needles import MultiKey, MultiQuery, MultiValue, Single, Word
from topkit.experiments.tasks.pairs import KeyValueRecall
from topkit.experiments.tasks.prompt import Prompt, Question
from topkit.experiments.tasks.recite import Recite
from topkit.experiments.tasks.ruler.task import Ruler
from topkit.experiments.tasks.scoring import RULES, Rule, rule_of, ruler_part, ruler_score
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

RULES |= OF_FORMATS

# Tasks of other benchmarks, from their files or in their manner; most need a file.
OFFICIAL: dict[str, type[Task]] = {
    task.name: task for task in (Ruler, Helmet, LongBench, LostInTheMiddle, NoLiMa, Recall)
}

REGISTRY: Registry[Task] = Registry(
    "task", Task, {**TASKS, **OFFICIAL}, "topkit.tasks", "niah-multikey:distractors=4"
)


def make_task(text: str, /, **parameters: Any) -> Task:
    """The task that a text names, or that a name and its parameters say.

    Raises: InputError for a text that does not parse, an unknown name or a misspelt parameter (the
    nearest is suggested), and a value of another type, or that the task refuses.
    """
    if not isinstance(text, str):
        raise InputError(f"expected a task as text, as 'niah-multikey'; got {quote(text)}")
    return make(text, REGISTRY, **parameters)


def prompt(task: Task, tokenizer: Any, length: int, sample: int, **options: Any) -> Prompt:
    """Prompt number `sample` of any task, as `task.sample` gives it.

    Raises: InputError as the task does; and, naming the task, for any error of code that is not topkit's,
    and for what is no prompt.
    """
    if type(task) in (*TASKS.values(), *OFFICIAL.values()):
        return task.sample(tokenizer, length, sample, **options)
    try:
        made = task.sample(tokenizer, length, sample, **options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{task_name(task)} cannot make prompt {sample}: {_place(error)}: "
            f"{type(error).__name__}: {error}; mend the task"
        ) from error
    if not (isinstance(made, Prompt) and made.ids and made.questions):
        raise InputError(
            f"{task_name(task)} cannot make prompt {sample}: expected a Prompt with tokens and questions; "
            f"got {type(made).__name__}; mend the task"
        )
    return made


def _place(error: BaseException) -> str:
    """The file and line that raised an error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def task_name(task: Task) -> str:
    """A task as tables name it: `niah-multikey:wording=trained`; a file by the end of its path and its hash."""
    return task.title if isinstance(task, FileTask) else flat(task)


__all__ = [
    "OFFICIAL",
    "REGISTRY",
    "RULES",
    "TASKS",
    "AnswerKeys",
    "Haystack",
    "Prompt",
    "Question",
    "Rule",
    "Task",
    "answer_keys",
    "first_key",
    "make_task",
    "prompt",
    "rule_of",
    "ruler_part",
    "ruler_score",
    "task_name",
]
