"""Things that print as a text which parses back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from dataclasses import field as new_field
from pathlib import Path
from typing import Any

from topkit.grammar.registry import Registry
from topkit.grammar.values import hints, plain, written


def later(default: Any) -> Any:
    """A parameter that a released thing was given afterwards: printed where it is not the default.

    What was printed before there was such a parameter is then still the thing's name. It is set by name
    alone, so that the parameters of classes derived from the thing keep their places.
    """
    return new_field(default=default, kw_only=True, metadata={"later": True})


class Named:
    """A frozen dataclass whose repr is its name in tables, and parses back."""

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Where its kind is looked up by name."""
        raise NotImplementedError(f"{cls.__name__}.registry")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A dataclass whose own class has no repr is given one that knows no module.
        if "__repr__" not in vars(cls):
            cls.__repr__ = Named.__repr__

    def __repr__(self) -> str:
        return full(self)

    @classmethod
    def meant(cls, keys: Sequence[str]) -> type[Any]:
        """The class that a text of this name and these parameters means, "" for one without a name.

        Another where a released name came to mean something else.
        """
        return cls

    def files(self) -> tuple[Path, ...]:
        """The files, and folders of files, that it reads: its parameters that are paths of what is there."""
        values = (getattr(self, field.name) for field in fields(self)) if is_dataclass(self) else ()
        return tuple(path for value in values for path in _paths(value))


class Verbatim(Named):
    """A thing that cannot be made here: its text alone."""

    text: str


def full(thing: Named) -> str:
    """With all parameters, as Python writes them: `keep(base=sign(), sink=4, window=0)`."""
    if isinstance(thing, Verbatim):
        return thing.text
    shown = [f"{f.name}={written(value, hint)}" for f, value, hint in _parameters(thing)]
    return f"{_name(thing)}({', '.join(shown)})"


def short(thing: Named) -> str:
    """For the eye: the first parameter, and of the others what is not default: `keep(sign(), sink=4)`."""
    if isinstance(thing, Verbatim):
        return thing.text
    shown: list[str] = []
    for place, (field, value, hint) in enumerate(_parameters(thing)):
        if place == 0 and isinstance(value, Named):
            shown.append(short(value))
        elif place == 0 or not _is_default(field, value):
            shown.append(f"{field.name}={_plain(thing, value, hint)}")
    return f"{_name(thing)}({', '.join(shown)})"


def flat(thing: Named) -> str:
    """Without brackets, what is not default: `niah-multikey:distractors=4,wording=trained`."""
    if isinstance(thing, Verbatim):
        return thing.text
    shown = [
        f"{field.name}={_plain(thing, value, hint)}"
        for field, value, hint in _parameters(thing)
        if not _is_default(field, value)
    ]
    return f"{_name(thing)}:{','.join(shown)}" if shown else _name(thing)


def quoted(text: str | Named) -> str:
    """A text as one word of a shell."""
    return shlex.quote(short(text) if isinstance(text, Named) else text)


def unprinted(thing: Named) -> set[str]:
    """The parameters that came `later` and have their default, which no text of the thing names."""
    known = fields(thing) if is_dataclass(thing) else ()
    return {f.name for f in known if "later" in f.metadata and getattr(thing, f.name) == f.default}


def _paths(value: object) -> Iterator[Path]:
    # A text is a path where it looks like one: `int8` is no file, even where one of that name lies.
    like = isinstance(value, str) and ("/" in value or "." in value)
    with suppress(OSError, ValueError):  # too long, or with a NUL
        if isinstance(value, Path) and value.exists():
            yield value
        elif isinstance(value, str) and like and Path(value).is_file():
            yield Path(value)


def _name(thing: Named) -> str:
    return thing.registry().name(type(thing))


def _parameters(thing: Named) -> Iterator[tuple[Field[Any], object, Any]]:
    known = hints(type(thing))
    silent = unprinted(thing)
    for field in fields(thing) if is_dataclass(thing) else ():
        if field.init and field.repr and field.name not in silent:
            yield field, getattr(thing, field.name), known[field.name]


def _plain(thing: Named, value: object, hint: Any) -> str:
    if isinstance(value, Named):
        return short(value)
    return plain(value, hint, thing.registry().base)


def _is_default(field: Field[Any], value: object) -> bool:
    made = field.default if field.default_factory is MISSING else field.default_factory()
    return made is not MISSING and bool(value == made)
