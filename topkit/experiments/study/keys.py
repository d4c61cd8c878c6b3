"""The keys of a study: what a file, a flag and an argument may say, each read by one rule."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from topkit.documents import Number, Whole, path_of, quote
from topkit.errors import InputError
from topkit.experiments.evaluate.setting import OBSERVED, SPARSE_FROM
from topkit.experiments.study.law import Law, read_law
from topkit.experiments.study.own_kinds import KINDS
from topkit.experiments.study.readers import (
    Reader,
    a_path,
    between,
    between_ends,
    length,
    lengths,
    listed,
    number,
    one_of,
    some,
    text,
    with_own,
    yes_or_no,
)
from topkit.experiments.tasks import Task, make_task
from topkit.grammar import nearest
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budgets
from topkit.indexers.equal_bytes import parse_byte_budgets
from topkit.indexers.spec import parse

DTYPES = ("float32", "bfloat16", "float16")


def haystacks(value: Any) -> int | dict[int, int]:
    """A number of haystacks, or one for each length."""
    count = number(Whole(1))
    if isinstance(value, Mapping):
        by_length = cast("Mapping[Any, Any]", value)
        return {length(key): count(its) for key, its in by_length.items()}
    return count(int(value) if isinstance(value, str) and value.isdecimal() else value)


def task(value: Any) -> Task:
    return value if isinstance(value, Task) else make_task(value)


def indexer(value: Any) -> Indexer:
    return parse(value)


def budgets(value: Any) -> tuple[Budget, ...]:
    """Budgets in tokens or per cent, also as one text: 16,1%."""
    return tuple(dict.fromkeys(k for one in listed(value) for k in parse_budgets(one)))


def groups(value: Any) -> tuple[tuple[int, int], ...]:
    """KV groups as LAYER/GROUP, also as one text: 3/1,4/0; `all` is no group of its own: every one."""
    several = value.split(",") if isinstance(value, str) else listed(value)
    if several == ["all"]:
        return ()
    found = [re.fullmatch(r"\s*([0-9]+)/([0-9]+)\s*", str(one)) for one in several]
    if not found or not all(found):
        raise InputError(f"expected all, or KV groups as LAYER/GROUP, as 3/1; got {quote(value)}")
    return tuple(dict.fromkeys((int(one[1]), int(one[2])) for one in found if one))


def a_law(value: Any) -> Law:
    return value if isinstance(value, Law) else read_law(text(value))


def ratios(value: Any) -> tuple[Budget, ...]:
    """Shares of the visible keys, in per cent: 1%,5%."""
    for one in (found := budgets(value)):
        if not one.percent:
            raise InputError(f"a ratio is in per cent, in (0, 100], as 1%; got {one}")
    return found


def a_capture(value: Any) -> Path:
    return path_of(value, "a capture, or a file of tensors")


# Every key but `pilot`, which has keys of its own, and `like`.
READERS: dict[str, Reader] = {
    "about": text,
    "model": some(text),
    "tasks": with_own(task, lengths),
    "lengths": lengths,
    "haystacks": haystacks,
    "budgets": budgets,
    "budget": parse_byte_budgets,
    "indexers": with_own(indexer, budgets),
    "seed": some(number(Whole())),
    "sparse_from": some(one_of({word: word for word in SPARSE_FROM})),
    "observe": one_of(OBSERVED),
    "shadow": yes_or_no,
    "text": a_path,
    "device": text,
    "dtype": one_of({word: word for word in DTYPES}),
    "batch_size": number(Whole(1)),
    "reach": number(Number(0, 1)),
    "margin": between_ends,
    "predict": yes_or_no,
    "law": a_law,
    "leaderboard": yes_or_no,
    "groups": groups,
    "kind": one_of({word: word for word in KINDS}),
    "captures": some(a_capture),
    "corpus": a_path,
}
# How a study trains its models: with how many paired seeds, at which ratios, by which recipe; or where they are.
TRAINING: dict[str, Reader] = {
    "ratios": ratios,
    "seeds": number(Whole(1)),
    "steps": number(Whole(1)),
    "rows": number(Whole(1)),
    "length": length,
    "peak": number(Number(0, 1)),
    "warmup": number(Whole(1)),
    "least": number(Whole(1)),
    "books": number(Whole(1)),
    "models": a_path,
}
PILOT: dict[str, Reader] = {
    "haystacks": number(Whole(1)),
    "budgets": budgets,
    "dense_at_least": number(Number(0, 1)),
    "exact_between": between,
    "distractors": some(number(Whole())),
    "lengths": lengths,
}


def read_keys(
    values: Mapping[str, Any], readers: Mapping[str, Reader], where: str = ""
) -> dict[str, Any]:
    """The values of some keys, read; `where` names what they stand in, as a file, where nothing else does.

    Raises: InputError naming a key that is none (the nearest is suggested), or whose value is wrong.
    """
    known, at = dict[str, Any](), f"{where}: " if where else ""
    for key, value in values.items():
        if key not in readers:
            raise InputError(f"{at}there is no key {quote(key)}; {nearest(key, readers)}")
        if value is None:
            raise InputError(f"{at}{key} has no value; write one, or leave the key out")
        try:
            known[key] = readers[key](value)
        except InputError as error:
            raise InputError(f"{at}{key}: {error}") from error
    return known
