"""What reads a value of a study's file: one or several, numbers within bounds, words, lengths, shares, paths."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from topkit.documents import Number, Whole, path_of, quote
from topkit.errors import InputError
from topkit.grammar import nearest
from topkit.grammar.lengths import parse_length

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


def yes_or_no(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise InputError(f"expected true or false; got {quote(value)}")
    return value


def a_path(value: Any) -> Path:
    return path_of(value, "a text")
