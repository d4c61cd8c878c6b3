# pyright: strict
"""What a recipe costs, by formulas over the shape of one layer at one step."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, cast

from topkit.errors import InputError
from topkit.indexers.symbols import Symbol, least, log2, power_of_two, shown

__all__ = ["Cost", "Shape", "formulas", "least", "log2", "power_of_two", "stated"]


@dataclass(frozen=True)
class Shape:
    """One layer at one step of decoding: numbers, or symbols of their names where a formula is printed.

    Hq query heads; Hk KV heads; D and Dv numbers of a key's head and of a value's; T keys that are
    visible; k that are kept; e bytes of a number of the cache.
    """

    Hq: float = 32
    Hk: float = 8
    D: float = 128
    Dv: float = 128
    T: float = 32768
    k: float = 2048
    e: float = 2

    @property
    def key_bytes(self) -> float:
        """Bytes of one key, over all KV heads."""
        return self.Hk * self.D * self.e

    @property
    def kept(self) -> float:
        """Keys of a list that does not come short."""
        return least(self.k, self.T)


@dataclass(frozen=True)
class Cost:
    """What a recipe costs in one layer, for one row.

    Units: index, bytes that the index holds a token; read, bytes that choosing reads a step, a query over
    all heads; operations, multiplications with their additions, or look-ups, of choosing a step; build
    and append, of an index of T keys and of one key more. Its selections have `lists`, one a KV head at
    least, as they are gathered, of at most `kept` keys each. estimated: what it reads depends on the keys,
    and `read` and `operations` are those of keys that are spread evenly.
    """

    index: float = 0
    read: float = 0
    operations: float = 0
    build: float = 0
    append: float = 0
    lists: float = 0
    kept: float = 0
    estimated: bool = False

    def besides(self, read: float = 0, operations: float = 0) -> Cost:
        """This cost, and what choosing reads and computes besides."""
        return replace(self, read=self.read + read, operations=self.operations + operations)


class Recipe(Protocol):
    """What states its costs."""

    def costs(self, shape: Shape) -> Cost: ...


COLUMNS = ("index", "read", "operations", "build", "append")


def formulas(recipe: Recipe) -> dict[str, str]:
    """The formulas of a recipe's costs as text, over the names of `Shape` and of its own numbers.

    Raises: InputError where the recipe states none, or none that can be printed.
    """
    shape = Shape(**{f.name: cast(Any, Symbol(f.name)) for f in fields(Shape)})
    try:
        cost = _of_names(recipe).costs(shape)
    except TypeError:  # it looks at numbers of its own, and is shown for those that it has
        cost = _of_numbers(recipe, shape)
    return {name: shown(getattr(cost, name)) for name in COLUMNS}


def _of_numbers(recipe: Recipe, shape: Shape) -> Cost:
    try:
        return recipe.costs(shape)
    except TypeError as error:
        raise InputError(
            f"{recipe} compares numbers of the shape, which have no formula: use `least` of "
            "topkit.indexers.stated_cost"
        ) from error


def stated(recipe: Recipe, shape: Shape) -> Cost | None:
    """The costs that a recipe states; None where it states none."""
    try:
        return recipe.costs(shape)
    except InputError:
        return None


def _of_names(recipe: Recipe) -> Recipe:
    """A copy of a recipe with symbols in place of its numbers, for its formulas alone."""
    twin = copy.copy(recipe)
    for f in fields(cast(Any, recipe)):
        value = getattr(recipe, f.name)
        if type(value) in (int, float):
            object.__setattr__(twin, f.name, Symbol(f.name))
        elif hasattr(value, "costs"):
            object.__setattr__(twin, f.name, _Part(f.name))
    return twin


@dataclass(frozen=True)
class _Part:
    """Stands for a recipe inside another; its costs are symbols."""

    name: str

    def costs(self, shape: Shape) -> Cost:
        terms = {x: cast(Any, Symbol(f"{self.name}.{x}")) for x in COLUMNS}
        lists = cast(Any, Symbol(f"{self.name}.lists"))
        return Cost(**terms, lists=lists, kept=shape.kept)
