"""Parameters and their types: a value read and written by the type of its parameter."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from topkit.grammar.text import is_quoted, literal

_WORDS: dict[str, object] = {
    "true": True,
    "false": False,
    "null": None,
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": math.nan,
}
_NONE = object()
# Letters that neither the grammar nor a shell reads otherwise.
_BARE = re.compile(r"[\w.+/@%-]+")
_CALL = re.compile(r"[^\W\d][\w.:-]*\(.*\)", re.DOTALL)


def parameters(thing: type[object], placed: bool = False) -> list[str]:
    """The names of a thing's parameters, in order, those that need their names last.

    `placed`: of those alone that may be set without a name.
    """
    own = [field for field in fields(thing) if field.init] if is_dataclass(thing) else []
    own.sort(key=lambda field: field.kw_only is True)
    return [field.name for field in own if not (placed and field.kw_only)]


@cache
def hints(thing: type[object]) -> dict[str, Any]:
    """The types of a thing's parameters; Any where a type cannot be told."""
    known: dict[str, Any] = {}
    for base in reversed(thing.__mro__):
        with suppress(Exception):  # a name that only a type checker sees
            known |= get_type_hints(base)
    return {name: known.get(name, Any) for name in parameters(thing)}


def read(text: str, hint: Any, thing: type, nested: Callable[[str], object]) -> object:
    """The value of a parameter of type `hint`; what does not suit it is left for the checks to refuse.

    A parameter that takes a `thing` (an indexer) is read by `nested`. One that takes text takes what
    stands there, whatever it looks like; quotes are a Python string's.
    """
    value: Any = literal(text, _WORDS.get(text.lower(), _NONE))
    if is_quoted(text):
        return Path(str(value)) if takes(hint, Path) and not takes(hint, str) else value
    if not fits(value, hint) and fits((), hint) and fits(value, list):
        value = tuple(value)  # brackets of either kind
    if value is not _NONE and fits(value, hint):
        return value
    if value is _NONE and (takes(hint, thing) or (hint is Any and _CALL.fullmatch(text))):
        return nested(text)
    if takes(hint, str):
        return text
    if takes(hint, Path):
        return Path(text)
    return text if value is _NONE else value


def written(value: object, hint: Any) -> str:
    """A value as Python text that `read` takes back: one text for equal values."""
    if isinstance(value, Path):
        return repr(str(value))
    if _is(value, Real):
        whole = _is(value, Integral) and (takes(hint, int) or not takes(hint, float))
        return repr(int(value) if whole else float(value))
    return repr(value)


def plain(value: object, hint: Any, thing: type) -> str:
    """As `written`, without the quotes of a string that needs none."""
    quoted = written(value, hint)
    bare = str(value) if isinstance(value, str | Path) else ""
    if not _BARE.fullmatch(bare):
        return quoted
    same = read(bare, hint, thing, lambda text: None)
    return bare if type(same) is type(value) and same == value else quoted


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a parameter's type, as far as that can be told."""
    if hint is Any:
        return True
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    kind = origin or hint
    if kind in (int, float):
        return _is(value, Integral if kind is int else Real)
    try:
        return isinstance(value, types.NoneType if kind is None else kind)
    except TypeError:  # a type variable, a protocol
        return True


def takes(hint: Any, kind: type) -> bool:
    """Whether a parameter of this type may be of that kind."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(takes(option, kind) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return any(isinstance(option, kind) for option in get_args(hint))
    return isinstance(hint, type) and issubclass(hint, kind)


def _is(value: object, number: type) -> TypeGuard[Any]:
    return isinstance(value, number) and not isinstance(value, bool)
