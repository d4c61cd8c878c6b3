"""Lengths as words: 4096, 4k."""

# pyright: strict
from __future__ import annotations

import re

from topkit.errors import InputError

_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_length(text: str) -> int:
    """A number of tokens: 4096 or 4k.

    Raises: InputError for anything else, and below 1.
    """
    match = re.fullmatch(r"([0-9]{1,12})\s*([km]?)", text.strip().lower())
    length = int(match[1]) * _UNITS[match[2]] if match else 0
    if length < 1:
        raise InputError(f"a length must be a number of tokens such as 4096 or 4k; got {text!r}")
    return length


def parse_lengths(text: str) -> list[int]:
    """Several lengths, each once: 4k,8k."""
    return list(dict.fromkeys(parse_length(part) for part in text.split(",")))
