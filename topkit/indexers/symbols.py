# pyright: strict
"""Symbols in place of numbers: the code of a cost's formula then prints the formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_SUM, _PRODUCT, _POWER, _ATOM = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class Symbol:
    """A term of arithmetic as text, and how tightly its last operation binds."""

    text: str
    binds: int = _ATOM

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Any) -> Symbol:
        return self if _is(other, 0) else _joined(self, " + ", other, _SUM)

    def __radd__(self, other: Any) -> Symbol:
        return self if _is(other, 0) else _joined(other, " + ", self, _SUM)

    def __sub__(self, other: Any) -> Symbol:
        return self if _is(other, 0) else _joined(self, " - ", other, _SUM, _PRODUCT)

    def __rsub__(self, other: Any) -> Symbol:
        return _joined(other, " - ", self, _SUM, _PRODUCT)

    def __mul__(self, other: Any) -> Any:
        if _is(other, 0):
            return 0
        return self if _is(other, 1) else _joined(self, " * ", other, _PRODUCT)

    def __rmul__(self, other: Any) -> Any:
        if _is(other, 0):
            return 0
        return self if _is(other, 1) else _joined(other, " * ", self, _PRODUCT)

    def __truediv__(self, other: Any) -> Symbol:
        return self if _is(other, 1) else _joined(self, " / ", other, _PRODUCT, _POWER)

    def __rtruediv__(self, other: Any) -> Any:
        return 0 if _is(other, 0) else _joined(other, " / ", self, _PRODUCT, _POWER)

    def __pow__(self, other: Any) -> Symbol:
        return _joined(self, "^", other, _POWER, _ATOM, _ATOM)

    def __rpow__(self, other: Any) -> Symbol:
        return _joined(other, "^", self, _POWER, _ATOM, _ATOM)

    def __ceil__(self) -> Symbol:
        return named("ceil", self)


def named(function: str, *terms: Any) -> Symbol:
    """The term `function(a, b)`."""
    return Symbol(f"{function}({', '.join(shown(term) for term in terms)})")


def least(*terms: Any) -> Any:
    """The least of some numbers, of which some may be symbols."""
    return named("min", *terms) if any(isinstance(x, Symbol) for x in terms) else min(terms)


def power_of_two(width: Any) -> Any:
    """The least power of two that is not below a number, as a Hadamard rotation needs."""
    if isinstance(width, Symbol):
        return named("pow2", width)
    return 1 << (int(width) - 1).bit_length()


def log2(x: Any) -> Any:
    """The logarithm of a number of at least 1, or of a symbol."""
    return named("log2", x) if isinstance(x, Symbol) else math.log2(max(x, 1))


def shown(term: Any) -> str:
    """A number or a symbol as text."""
    return str(term) if isinstance(term, Symbol) else f"{term:g}"


def _joined(a: Any, sign: str, b: Any, binds: int, right: int = 0, left: int = 0) -> Symbol:
    return Symbol(f"{_inside(a, left or binds)}{sign}{_inside(b, right or binds)}", binds)


def _inside(term: Any, binds: int) -> str:
    """A term as part of another that binds so tightly."""
    if isinstance(term, Symbol) and term.binds < binds:
        return f"({term})"
    return shown(term)


def _is(x: Any, number: float) -> bool:
    return not isinstance(x, Symbol) and x == number
