"""From a text to the thing that it names, by way of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, TypeVar

from topkit.errors import InputError
from topkit.grammar.registry import Registry, cut, nearest, said
from topkit.grammar.text import Unreadable, split
from topkit.grammar.values import fits, hints, parameters, read

T = TypeVar("T")


def parse(text: str | T, registry: Registry[T]) -> T:
    """The thing that a text names; a thing is given back.

    Raises: InputError for a text that does not parse, an unknown name or a misspelt parameter (the
    nearest is suggested), and a value that the thing refuses.
    """
    if isinstance(text, registry.base):
        return text
    if not isinstance(text, str):
        hint = f"; write {text.__name__}()" if isinstance(text, type) else ""
        raise InputError(f"{_expected(registry)}; got {text!r}{hint}")
    return make(text, registry)


def make(text: str, registry: Registry[T], /, **more: Any) -> T:
    """The thing that a text names, with `more` parameters of Python's own. Raises: as `parse`."""
    name, thing, values = _read(text, registry)
    for key in more:
        _require(name, key, parameters(thing), key in values)
    return _made(name, thing, {**values, **more}, registry)


def _read(text: str, registry: Registry[T]) -> tuple[str, type[T], dict[str, object]]:
    try:
        name, written = split(text, registry.knows)
    except Unreadable as error:
        raise InputError(
            f"cannot read the {registry.kind} {cut(text)}: {error}; {_expected(registry)}"
        ) from None
    thing: Any = registry.find(name)
    if hasattr(thing, "meant"):
        thing = thing.meant([key or "" for key, _ in written])
    values: dict[str, object] = {}
    known, placed = parameters(thing), parameters(thing, placed=True)
    for place, (key, value) in enumerate(written):
        key = key or _place(name, place, value, known, placed)
        _require(name, key, known, key in values)
        try:
            values[key] = read(
                value, hints(thing)[key], registry.base, partial(parse, registry=registry)
            )
        except Unreadable as error:
            raise InputError(f"{name}: cannot read {key} in {cut(text)}: {error}") from None
        except RecursionError:
            raise InputError(f"{name}: {cut(text)} is nested too deeply") from None
    return name, thing, values


def _expected(registry: Registry[Any]) -> str:
    article = "an" if registry.kind[0] in "aeiou" else "a"
    return f"expected {article} {registry.kind} such as {registry.example}"


def _place(name: str, place: int, value: str, known: list[str], placed: list[str]) -> str:
    if value in known:
        raise InputError(f"{name}: {value} stands without a value; write {value}=VALUE")
    if place >= len(placed):
        raise InputError(
            f"{name} takes {len(placed)} parameters without a name ({', '.join(placed)}); got {value!r} "
            "beyond them"
        )
    return placed[place]


def _require(name: str, key: str, known: list[str], twice: bool = False) -> None:
    if key not in known:
        hint = nearest(key, known) if known else "it takes none"
        raise InputError(f"{name} has no parameter {key!r}; {hint}")
    if twice:
        raise InputError(f"{name}: parameter {key!r} is given twice")


def _made(name: str, thing: type[T], values: Mapping[str, object], registry: Registry[T]) -> T:
    for field in fields(thing):  # type: ignore[arg-type]
        bare = field.init and field.default is field.default_factory is MISSING
        if bare and field.name not in values:
            hint = f"write {name}({field.name}=...)"
            raise InputError(f"{name}: {field.name} has no default; {hint}")
    try:
        made = thing(**values)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        # Mostly a value of another type than the class counts on.
        _require_types(name, thing, values)
        raise InputError(f"{registry.described(thing)} cannot be made: {said(error)}") from error
    # What the thing checks itself is said in its own words, above.
    _require_types(name, thing, values)
    return made


def _require_types(name: str, thing: type[T], values: Mapping[str, object]) -> None:
    for key, value in values.items():
        hint = hints(thing)[key]
        if not fits(value, hint):
            kind = hint.__name__ if isinstance(hint, type) else str(hint)
            raise InputError(f"{name}: {key} must be {kind}; got {value!r}")
