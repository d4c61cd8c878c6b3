"""The keys of a study: what a file, a flag and an argument may say, each read by one rule."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from topkit.documents import Number, Whole, path_of, quote
from topkit.errors import InputError
from topkit.experiments.evaluate.setting import OBSERVED, SPARSE_FROM
from topkit.experiments.study.law import Law, read_law
from topkit.experiments.tasks import Task, make_task
from topkit.grammar import nearest
from topkit.grammar.lengths import parse_length
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budgets
from topkit.indexers.equal_bytes import parse_byte_budgets
from topkit.indexers.spec import parse

DTYPES = ("float32", "bfloat16", "float16")

Reader = Callable[[Any], Any]


def listed(value: Any) -> list[Any]:
    """One value, or several."""
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return list(cast("Iterable[Any]", value)) if several else [value]


def some(read: Reader) -> Reader:
    """What reads one value or several, each once."""

    def read_all(value: Any) -> tuple[Any, ...]:
        values = tuple(dict.fromkeys(map(read, listed(value))))
        if not values:
            raise InputError("expected one or more; got none")
        return values

    return read_all


def number(kind: Whole | Number) -> Reader:
    """What reads a number within bounds."""

    def read(value: Any) -> Any:
        if not kind.fits(value):
            raise InputError(f"expected {kind}; got {quote(value)}")
        return value

    return read


def one_of(words: Mapping[Any, Any]) -> Reader:
    """What reads one of some words, as what it stands for."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return words[value]
        for known in words.values():
            if type(value) is type(known) and value == known:
                return known
        raise InputError(f"unknown value {quote(value)}; {nearest(str(value), words)}")

    return read


def text(value: Any) -> str:
    """A text that is not empty, or a path as text."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"expected text; got {quote(value)}")
    return value


def length(value: Any) -> int:
    """Tokens of a prompt: 4096, 4k."""
    if isinstance(value, str):
        return parse_length(value)
    return number(Whole(1))(value)


def lengths(value: Any) -> tuple[int, ...]:
    """Several lengths, also as one text: 4k,8k."""
    values = [part for one in listed(value) for part in (one.split(",") if isinstance(one, str) else [one])]  # fmt: skip
    return some(length)(values)


def haystacks(value: Any) -> int | dict[int, int]:
    """A number of haystacks, or one for each length."""
    count = number(Whole(1))
    if isinstance(value, Mapping):
        by_length = cast("Mapping[Any, Any]", value)
        return {length(key): count(its) for key, its in by_length.items()}
    return count(int(value) if isinstance(value, str) and value.isdecimal() else value)


def with_own(read: Reader, own: Reader) -> Reader:
    """What reads a thing, or {thing: what is its own}, as (thing, its own or None)."""

    def read_one(value: Any) -> tuple[Any, Any]:
        if not isinstance(value, Mapping):
            return read(value), None
        named = cast("Mapping[Any, Any]", value)
        if len(named) != 1:
            raise InputError(f"expected one name with its own values; got {quote(named)}")
        ((name, values),) = named.items()
        return read(name), own(values)

    return some(read_one)


def task(value: Any) -> Task:
    return value if isinstance(value, Task) else make_task(value)


def indexer(value: Any) -> Indexer:
    return parse(value)


def budgets(value: Any) -> tuple[Budget, ...]:
    """Budgets in tokens or per cent, also as one text: 16,1%."""
    return tuple(dict.fromkeys(k for one in listed(value) for k in parse_budgets(one)))


def between(value: Any) -> tuple[float, float]:
    """Two shares, the lower first."""
    ends = [number(Number(0, 1))(end) for end in listed(value)]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise InputError(
            f"expected two shares, the lower first, as [0.3, 0.95]; got {quote(value)}"
        )
    return ends[0], ends[1]


def between_ends(value: Any) -> float:
    """A share that is neither 0 nor 1."""
    share = number(Number(0, 1))(value)
    if not 0 < share < 1:
        raise InputError(f"expected a share between 0 and 1, as 0.01; got {quote(value)}")
    return share


def groups(value: Any) -> tuple[tuple[int, int], ...]:
    """KV groups as LAYER/GROUP, also as one text: 3/1,4/0; `all` is no group of its own: every one."""
    several = value.split(",") if isinstance(value, str) else listed(value)
    if several == ["all"]:
        return ()
    found = [re.fullmatch(r"\s*([0-9]+)/([0-9]+)\s*", str(one)) for one in several]
    if not found or not all(found):
        raise InputError(f"expected all, or KV groups as LAYER/GROUP, as 3/1; got {quote(value)}")
    return tuple(dict.fromkeys((int(one[1]), int(one[2])) for one in found if one))


def yes_or_no(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise InputError(f"expected true or false; got {quote(value)}")
    return value


def a_law(value: Any) -> Law:
    return value if isinstance(value, Law) else read_law(text(value))


def a_path(value: Any) -> Path:
    return path_of(value, "a text")


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
