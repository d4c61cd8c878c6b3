# pyright: strict
"""What recipes refuse: one clear line each, with the nearest choice where a word is misspelt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from topkit.errors import InputError
from topkit.grammar import nearest
from topkit.indexers.base import Indexer
from topkit.indexers.budget import MOST


def choice(recipe: Indexer, name: str, known: Iterable[str]) -> None:
    """Require that a parameter is one of the known words."""
    value, known = getattr(recipe, name), list(known)
    if value not in known:
        hint = nearest(str(value), known)
        raise InputError(
            f"{_named(recipe, name)} must be one of {', '.join(known)}; got {value!r}; {hint}"
        )


def one_of(recipe: Indexer, name: str, known: Iterable[int]) -> None:
    """Require that a parameter is one of some whole numbers."""
    value, known = getattr(recipe, name), list(known)
    if type(value) is not int or value not in known:
        listed = ", ".join(map(str, known))
        raise InputError(f"{_named(recipe, name)} must be one of {listed}; got {value!r}")


def whole(recipe: Indexer, name: str, least: int, most: int = MOST) -> None:
    """Require that a parameter is an int from `least` to `most`."""
    value = getattr(recipe, name)
    if type(value) is not int or not least <= value <= most:
        beyond = type(value) is int and value > most
        bound = f"at most {most:,}" if beyond else f"at least {least}"
        raise InputError(f"{_named(recipe, name)} must be a whole number of {bound}; got {value!r}")


def share(recipe: Indexer, name: str) -> None:
    """Require that a parameter is a number in [0, 1]."""
    value = getattr(recipe, name)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise InputError(f"{_named(recipe, name)} must be a number from 0 to 1; got {value!r}")


def flag(recipe: Indexer, name: str) -> None:
    """Require that a parameter is True or False."""
    value = getattr(recipe, name)
    if type(value) is not bool:
        raise InputError(f"{_named(recipe, name)} must be true or false; got {value!r}")


def layers(recipe: Indexer, name: str) -> None:
    """Require that a parameter is a tuple of layers, ascending."""
    value: Any = getattr(recipe, name)
    known = cast(tuple[Any, ...], value) if isinstance(value, tuple) else (-1,)
    if any(type(n) is not int or n < 0 for n in known) or tuple(sorted(set(known))) != known:
        raise InputError(
            f"{_named(recipe, name)} must be numbers of layers, ascending, as (0, 8); got {value!r}"
        )


def _named(recipe: Indexer, name: str) -> str:
    return f"{type(recipe).__name__}: {name}"
