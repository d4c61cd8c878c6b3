"""Words of the command line that stand for values: 4k, 4k,8k, niah-multikey:distractors=30."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from topkit.errors import InputError
from topkit.grammar.lengths import parse_length, parse_lengths

if TYPE_CHECKING:
    from topkit.experiments.tasks import Task

__all__ = ["parse_length", "parse_lengths", "parse_name", "parse_numbers", "parse_task"]


def parse_numbers(text: str) -> list[int]:
    """Numbers from 0 on: 0,3,5.

    Raises: InputError for anything else.
    """
    if not re.fullmatch(r"\s*[0-9]{1,12}\s*(,\s*[0-9]{1,12}\s*)*", text):
        raise InputError(f"expected numbers such as 0,3,5; got {text!r}")
    return [int(part) for part in text.split(",")]


def parse_name(name: str, names: Sequence[str], kind: str) -> str:
    """One of some names.

    Raises: InputError for any other; the nearest is suggested.
    """
    if name not in names:
        from topkit.grammar import nearest

        raise InputError(f"unknown {kind} {name!r}; {nearest(name, names)}")
    return name


def parse_task(text: str) -> Task:
    """A task as every form of the grammar writes it: niah-multikey:distractors=30,wording=code."""
    from topkit.experiments.tasks import make_task

    return make_task(text)
