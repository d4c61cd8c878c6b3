"""What parameters that several tasks have must be."""

from __future__ import annotations

from typing import Protocol

from topkit.errors import InputError

# More would not fit into any prompt, and be drawn for ever.
MOST_DIGITS = 1000


class Facts(Protocol):
    """The parameters of a task that plants facts of which some are asked for."""

    @property
    def questions(self) -> int: ...
    @property
    def distractors(self) -> int: ...
    @property
    def digits(self) -> int: ...
    @property
    def depth(self) -> float: ...


def require_facts(name: str, task: Facts) -> None:
    """Raises: InputError for numbers of facts, digits and a depth that no haystack can have."""
    if task.questions < 1 or task.distractors < 0:
        raise InputError(f"{name}: expected questions >= 1, distractors >= 0; got {task}")
    require_digits(name, task.digits)
    require_depth(name, task.depth)


def require_depth(task: str, depth: float) -> None:
    """Raises: InputError for what is neither a depth, 0 the start and 1 the end, nor -1."""
    if depth != -1 and not 0 <= depth <= 1:
        raise InputError(f"{task}: depth must lie in 0..1, or be -1; got {depth}")


def require_digits(task: str, digits: int) -> None:
    """Raises: InputError for a number of digits that no value can have."""
    if not 0 <= digits <= MOST_DIGITS:
        raise InputError(f"{task}: digits must lie in 0..{MOST_DIGITS:,}; got {digits}")
