"""What fuzzing shares: hostile words, and mutations of texts, of JSON and of bytes, all drawn from a seed."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture

# 1 in every test run; TOPKIT_FUZZ=100 for all of it.
TIMES = int(os.environ.get("TOPKIT_FUZZ", "1"))

WORDS = (
    *("", "(", ")", "[", "]", "{", "}", ",", "=", ":", ".", "-", "+", "%", "'", '"', "\\", "/", "#", " "),
    *("\n", "\t", "\0", "\ud800", "é", "\u0663", "\uff11\uff16", "²", "½", "\u202e", "\ufeff", "\U0001d7d9"),
    *("0", "1", "-1", "3.5", "1e400", "-1e400", "1e-400", "nan", "inf", "-inf", "0x10", "1_000", "1j"),
    *("9" * 30, "9" * 1000, "9" * 5000, "x" * 300, "x" * 5000, "(" * 100, "[" * 3000, "-" * 3000),
    *("None", "True", "False", "null", "...", "()", "[1]", "(1, 2)", "{1: 2}", "b'x'", "'x'", "{}"),
    *("sign", "sign()", "exact", "dense", "keep", "keep(", "keep:base=", "base=", "page_size=", "dtype="),
    *("os:path", "os.path:join", "sys:exit", "__main__:x", "nowhere:x", "..", "../x", "/", "a.b:c"),
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308),
    *("", "x", "zzz", "\0", "\ud800", "../x", "/etc/passwd", ".", "..", "x" * 300, "0" * 64, "NaN"),
    *(
        [],
        {},
        [[]],
        [0],
        [None],
        {"": 0},
        {"\0": 0},
        [[[[[0]]]]],
        {"a": {"b": {}}},
        list(range(99)),
    ),
)


def line_of(call: Callable[[], object]) -> str | None:
    """The one line by which a call refuses; None where it does not. Whatever else is raised goes up."""
    try:
        call()
    except InputError as error:
        said = str(error)
        if "\n" in said or len(said) > 2000:
            raise AssertionError(f"no line for people: {said[:3000]!r}") from error
        return said
    return None


def changed_text(draw: random.Random, text: str) -> str:
    """A text with a few places cut out, doubled, turned round, or replaced by hostile words."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        a = draw.randint(0, len(text))
        b = min(len(text), a + draw.choice((0, 0, 1, 1, 2, 5, 20)))
        middle = draw.choice(
            (draw.choice(WORDS), draw.choice(WORDS), "", text[a:b] * 2, text[a:b][::-1])
        )
        text = text[:a] + middle + text[b:]
    return text


def changed_json(draw: random.Random, value: Any) -> Any:
    """JSON with one of its values, at any depth, replaced, removed or doubled."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    holder, key = draw.choice(places)
    how = draw.random()
    if how < 0.15:
        del holder[key]
    elif how < 0.25 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif how < 0.35:
        other, place = draw.choice(places)
        holder[key] = copy.deepcopy(other[place]) if place in _keys(other) else None
    else:
        holder[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def _keys(holder: Any) -> Any:
    return range(len(holder)) if isinstance(holder, list) else holder


def _places(value: Any) -> Any:
    """(holder, key) of every value inside."""
    for key in list(_keys(value)) if isinstance(value, (list, dict)) else ():
        yield value, key
        yield from _places(value[key])


def changed_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Bytes with some flipped, cut off, doubled or replaced."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(raw) + 1)
        size = draw.choice((1, 1, 4, 8, 64))
        fill = draw.choice((b"", bytes(size), b"\xff" * size, draw.randbytes(size), raw[at:] * 2))
        raw = raw[:at] + fill + (raw[at + size :] if draw.random() < 0.8 else b"")
    return raw


def load_all(path: Path) -> None:
    """Open a capture and load all that it has."""
    capture = Capture.open(path)
    for sample in capture.samples:
        for layer in capture.layers:
            capture.load(sample, layer)
    assert capture.fingerprint
