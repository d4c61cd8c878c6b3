"""What a value must be, and the one line that says where it is not so."""

# pyright: strict, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, cast

from topkit.errors import InputError

DEEPEST = 64
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds."""

    least: int = 0
    most: int = LARGEST

    def fits(self, value: object) -> bool:
        return type(value) is int and self.least <= value <= self.most

    def __str__(self) -> str:
        if self.most < LARGEST:
            return f"a whole number from {self.least} to {self.most}"
        return f"a whole number of at least {self.least}"


@dataclass(frozen=True)
class Number:
    """A number within bounds."""

    least: float = -math.inf
    most: float = math.inf

    def fits(self, value: object) -> bool:
        return type(value) in (int, float) and self.least <= cast(float, value) <= self.most

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("at most", self.most))
        known = " and ".join(f"{word} {x:g}" for word, x in bounds if math.isfinite(x))
        return f"a number of {known}" if known else "a number"


@dataclass(frozen=True)
class Text:
    """Text that a pattern matches as a whole; `says` is the pattern in words."""

    pattern: str
    says: str

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value, re.DOTALL) is not None

    def __str__(self) -> str:
        return self.says


@dataclass(frozen=True, init=False)
class OneOf:
    """One of some values."""

    values: tuple[str | int, ...]

    def __init__(self, *values: str | int) -> None:
        object.__setattr__(self, "values", values)

    def fits(self, value: object) -> bool:
        return any(type(value) is type(one) and value == one for one in self.values)

    def __str__(self) -> str:
        return " or ".join(map(repr, self.values))


@dataclass(frozen=True)
class FileName:
    """The name of a file in the document's own folder."""

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and is_file_name(value)

    def __str__(self) -> str:
        return "the name of a file in this folder, and no path"


SHA256 = Text("[0-9a-f]{64}", "64 hexadecimal digits")
# What people wrote: it may hold any character.
Prose = Text(".*", "text")

Schema = Any  # a type or a union of types, one of the above, or {...}, [...], (...) of schemas
_HALVES = re.compile("[\ud800-\udfff]")
_KINDS = (Whole, Number, Text, OneOf, FileName)
_WORDS: dict[object, str] = {
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    str | None: "text or null",
}


def is_file_name(text: str) -> bool:
    """Whether a text is the name of a file by itself: no path, and no longer than a name may be."""
    return text not in ("", ".", "..") and not set(text) & set("/\\\0") and is_short(text)


def is_short(name: str) -> bool:
    """Whether file systems take a name of so many bytes."""
    return len(name.encode(errors="surrogatepass")) <= 255


def check(value: Any, schema: Schema, source: str | Path, remedy: str) -> None:
    """Hold a value to a schema. Raises: InputError, as `read_json`."""
    _Checker(f"{source}: ", remedy).check(value, schema, ())


Place = Sequence[str | int]


@dataclass(frozen=True)
class _Checker:
    source: str
    remedy: str

    def check(self, value: Any, schema: Schema, at: Place) -> None:
        if len(at) > DEEPEST:
            raise InputError(f"{self.source}it nests more than {DEEPEST} levels; {self.remedy}")
        self._sound(value, schema, at)
        if isinstance(schema, dict):
            self._mapping(value, cast("dict[Any, Schema]", schema), at)
        elif isinstance(schema, list | tuple):
            self._list(value, cast("list[Schema] | tuple[Schema, ...]", schema), at)
        elif isinstance(schema, _KINDS):
            if not schema.fits(value):
                self._require(False, str(schema), value, at)
        else:
            self._typed(value, schema, at)

    def _sound(self, value: Any, schema: Schema, at: Place) -> None:
        """Whatever the schema says: numbers of 64 bits, characters that are whole."""
        if isinstance(value, float):
            self._require(math.isfinite(value), "a finite number", value, at)
        elif isinstance(value, int):
            self._require(abs(value) <= LARGEST, "a number of 64 bits", value, at)
        elif isinstance(value, str):
            self._require(not _HALVES.search(value), "text in whole characters", value, at)
            self._require(schema is Prose or "\0" not in value, "text without NUL", value, at)

    def _typed(self, value: Any, schema: type | UnionType, at: Place) -> None:
        fits = isinstance(value, schema) and (schema is not int or type(value) is int)
        self._require(fits, _WORDS.get(schema, str(schema)), value, at)
        if isinstance(value, dict):
            self._mapping(value, {str: object}, at)
        elif isinstance(value, list):
            self._list(value, [object], at)

    def _mapping(self, value: Any, schema: dict[Any, Schema], at: Place) -> None:
        self._require(isinstance(value, dict), "a mapping", value, at)
        for key in value:
            self._require(isinstance(key, str), "a mapping whose names are text", key, at)
            self._sound(key, str, at)
        known = {str(key).removesuffix("?"): of for key, of in schema.items() if key is not str}
        for key in schema:
            if key is not str and not str(key).endswith("?") and key not in value:
                raise InputError(f"{self.source}{_place((*at, key))} is missing; {self.remedy}")
        for key, one in value.items():
            self.check(one, known.get(key, schema.get(str, object)), (*at, key))

    def _list(self, value: Any, schema: list[Schema] | tuple[Schema, ...], at: Place) -> None:
        self._require(isinstance(value, list), "a list", value, at)
        if isinstance(schema, tuple):
            self._require(len(value) == len(schema), f"a list of {len(schema)}", value, at)
        of = schema if isinstance(schema, tuple) else schema * len(value)
        for number, (one, kind) in enumerate(zip(value, of, strict=True)):
            self.check(one, kind, (*at, number))

    def _require(self, fits: bool, expected: str, value: object, at: Place) -> None:
        if not fits:
            where = f"{_place(at)} " if at else "it "
            raise InputError(
                f"{self.source}{where}must be {expected}; got {quote(value)}; {self.remedy}"
            )


def _place(at: Place) -> str:
    """`files[3].name`."""
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{_name(step)}" for step in at)
    return words.removeprefix(".")


def _name(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,60}", key) else quote(key)


def quote(value: object) -> str:
    """A value as an error shows it, within 80 characters: of a large one, its type."""
    value = cast(Any, value)
    if isinstance(value, dict | list) and not _is_short(value):
        return f"{_WORDS[type(value)]} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:40]}..."


def _is_short(value: Any) -> bool:
    return (
        type(value) is list and len(value) <= 8 and not any(type(x) in (dict, list) for x in value)
    )
