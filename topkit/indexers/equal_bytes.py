# pyright: strict
"""Budgets of bytes: each recipe's own parameter, chosen so that all recipes read alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from topkit.documents import quote
from topkit.errors import InputError
from topkit.indexers.base import Indexer
from topkit.indexers.stated_cost import Shape, stated

# What is read may be off by this share of the budget.
NEAR = 0.1
# Not indexers but what they are compared with: they stay as they are.
COMPARED_WITH = {"oracle": "an oracle", "control": "a control", "window": "a window"}


@dataclass(frozen=True)
class ByteBudget:
    """Bytes that choosing reads a token and layer, or a share of the keys' bytes; its str parses back."""

    amount: float
    share: bool = False

    def at(self, shape: Shape) -> float:
        """Bytes a token and layer."""
        return self.of(shape.key_bytes)

    def of(self, key_bytes: float) -> float:
        """The same, where all heads of a key take so many bytes."""
        return self.amount * key_bytes if self.share else self.amount

    def __str__(self) -> str:
        return f"bytes={self.amount:g}"


@dataclass(frozen=True)
class Chosen:
    """A recipe as a budget has it, and the bytes a token and layer that it states to read.

    why: in what it departs from the budget; "" where it does not. over: whether it reads more.
    """

    recipe: Indexer
    read: float | None = None
    why: str = ""
    over: bool = False


# One budget of bytes or several: "bytes=0.06,bytes=64", or a list.
ByteBudgets = str | ByteBudget | Mapping[str, float] | Sequence[Any] | None


def parse_byte_budgets(text: ByteBudgets) -> tuple[ByteBudget, ...]:
    """Read one budget of bytes or several, also as one text: "bytes=0.06,bytes=64"; None is none."""
    if text is None:
        return ()
    if isinstance(text, str):
        several: list[Any] = text.split(",")
    else:
        several = list(text) if isinstance(text, list | tuple) else [text]
    return tuple(dict.fromkeys(map(parse_byte_budget, several)))


def parse_byte_budget(text: Any) -> ByteBudget:
    """Read "bytes=0.06", of the keys' bytes, or "bytes=64", a token and layer.

    Raises: InputError for anything else, and for what is not above zero.
    """
    if isinstance(text, ByteBudget):
        return text
    match = re.fullmatch(r"\s*bytes\s*=\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*", _said(text))
    amount = float(match[1]) if match else 0.0
    if not 0 < amount < math.inf:
        raise InputError(
            "budget must be bytes=0.06 (below 1: of the keys' bytes) or bytes=64 (a token and layer), or several; "
            f"got {quote(text)}"
        )
    return ByteBudget(amount, share=amount < 1)


def _said(text: Any) -> str:
    """A budget as a text; of YAML also the mapping {bytes: 64}."""
    if isinstance(text, Mapping):
        (name, amount), *others = [*cast("Mapping[Any, Any]", text).items(), ("", "")]
        return f"{name}={amount}" if len(others) == 1 else ""
    return str(text)


@lru_cache(maxsize=4096)
def at_equal_bytes(recipe: Indexer, budget: ByteBudget, shape: Shape) -> Chosen:
    """The recipe with that parameter changed, of those it says are `tuned`, by which it reads the budget.

    From the outermost recipe inwards, the first whose values meet it; of these the nearest in ratio, and the
    one that is written where several are as near. Where none meets it, the nearest of those that read less.
    Only one parameter is changed.
    """
    if recipe.family in COMPARED_WITH:
        what = COMPARED_WITH[recipe.family]
        return Chosen(recipe, _read(recipe, shape), f"is {what}, and stays as it is")
    if stated(recipe, shape) is None:
        return Chosen(recipe, None, "does not state what it reads, and stays as it is")
    wanted = budget.at(shape)

    def order(one: Indexer) -> tuple[bool, float]:
        read = _read(one, shape)
        return _over(read, wanted), _apart(read, wanted)

    best = recipe
    for values in _variants(recipe):
        best = min((best, *values), key=order)
        if _meets(_read(best, shape), wanted):
            break
    read = _read(best, shape)
    assert read is not None
    if _meets(read, wanted):
        return Chosen(best, read)
    return Chosen(
        best, read, f"reads {read:.4g} bytes a token, of {wanted:.4g}", _over(read, wanted)
    )


def _meets(read: float | None, wanted: float) -> bool:
    return read is not None and abs(read - wanted) <= NEAR * wanted


def _over(read: float | None, wanted: float) -> bool:
    return read is not None and read > (1 + NEAR) * wanted


def _apart(read: float | None, wanted: float) -> float:
    """How far from a budget, as a ratio's logarithm."""
    return math.inf if not read else abs(math.log(read / wanted))


def _read(recipe: Indexer, shape: Shape) -> float | None:
    """Bytes a token that a recipe states to read at a step."""
    cost = stated(recipe, shape)
    return None if cost is None else cost.read / shape.T


def _variants(recipe: Indexer) -> Iterator[list[Indexer]]:
    """The recipe at all values of each parameter that may be chosen, those of the outermost recipe first."""
    for name, values in recipe.tuned.items():
        yield list(_made(recipe, name, values))
    base = getattr(recipe, "base", None)
    if isinstance(base, Indexer):
        for inner in _variants(base):
            yield list(_made(recipe, "base", inner))


def _made(recipe: Indexer, name: str, values: Iterable[Any]) -> Iterator[Indexer]:
    """The recipe at the values that it does not refuse."""
    for value in values:
        try:
            yield cast(Any, replace)(recipe, **{name: value})
        except InputError:
            continue
