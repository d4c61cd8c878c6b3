"""A text as a name and its parameters, each still as it was written.

name    name(value, key=value)    name:key=value,key=value    package.module:name in place of name
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable

from topkit.errors import InputError

# "<" and ">" stand in the qualified name of a class that a function made.
_HEAD = re.compile(r"\s*([^\W\d][\w.<>-]*)\s*")
# What follows a module's colon; a parameter would be followed by "=".
_PATH = re.compile(r":\s*([^\W\d][\w.<>]*)\s*(?=[:(]|$)")
_KEY = re.compile(r"\s*([^\W\d]\w*)\s*=(?!=)")
_DEEPEST = 50
_MISSING = object()

Parameters = list[tuple[str | None, str]]


class Unreadable(InputError):
    """A text in no form of the grammar."""


def split(text: str, known: Callable[[str], bool]) -> tuple[str, Parameters]:
    """The name in front, with its module where it has one, and (key or None, value) in order.

    `known` says whether a word is a name by itself: in "word:rest" it is a module otherwise.
    Raises: Unreadable for a text in neither form.
    """
    head = _HEAD.match(text)
    if head is None:
        raise Unreadable("there is no name in front")
    name, rest = head[1], text[head.end() :].rstrip()
    path = _PATH.match(rest)
    if path and not known(name):
        name, rest = f"{name}:{path[1]}", rest[path.end() :]
    if rest.startswith("(") and not rest.endswith(")"):
        raise Unreadable("it does not end with the bracket of its parameters")
    if rest.startswith("("):
        return name, [_keyed(part) for part in _parts(rest[1:-1])]
    if rest.startswith(":"):
        return name, [_keyed(part) for part in _parts(rest[1:])]
    if rest:
        raise Unreadable(f"{rest[:40]!r} after the name is no list of parameters")
    return name, []


def literal(text: str, otherwise: object = _MISSING) -> object:
    """The Python literal that a text is; `otherwise` where it is none.

    Raises: Unreadable for one that is nested too deeply, and for quotes around what is no string.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's parser warns of 1if and of '\\d'
            return ast.literal_eval(text)
    except (RecursionError, MemoryError):  # Python's parser raises either
        raise Unreadable("it is nested too deeply") from None
    except (SyntaxError, ValueError, TypeError):
        if is_quoted(text):
            raise Unreadable(f"{text[:80]!r} is no string; close its quotes") from None
        return otherwise


def is_quoted(text: str) -> bool:
    """Whether a value begins with a quote, and is a string to the letter."""
    return text[:1] in ("'", '"')


def _keyed(part: str) -> tuple[str | None, str]:
    key = _KEY.match(part)
    return (key[1], part[key.end() :].strip()) if key else (None, part.strip())


def _parts(text: str) -> list[str]:
    """What stands between the commas, but for those in brackets and quotes; nothing where blank.

    A quote begins where a value may begin, and is a letter elsewhere: data/o'neil/weights.
    """
    parts, start, depth, quote, escaped, begins = list[str](), 0, 0, "", False, True
    for at, c in enumerate(text):
        if quote:
            quote = "" if c == quote and not escaped else quote
            escaped = c == "\\" and not escaped
            continue
        if c in "'\"" and begins:
            quote = c
        depth += (c in "([{") - (c in ")]}")
        if not 0 <= depth <= _DEEPEST:
            deep = "it is nested too deeply"
            raise Unreadable(deep if depth > 0 else f"a bracket is closed before it opens at {at}")
        if c == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        begins = c in "([{,=:" or (begins and c.isspace())
    if quote or depth:
        raise Unreadable("a quote is not closed" if quote else "a bracket is not closed")
    return [part for part in (*parts, text[start:]) if part.strip()]
