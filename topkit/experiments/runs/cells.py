"""Cells: what is compared on the same prompts. An indexer at a budget, or full attention."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

from topkit.errors import InputError
from topkit.experiments.runs.identity import of_all, within
from topkit.indexers.base import Indexer
from topkit.indexers.budget import UNCAPPED, Budget, Budgets, parse_budgets
from topkit.indexers.native import native
from topkit.indexers.spec import parse

DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """One indexer at one budget; without them, full attention."""

    indexer: Indexer | None = None
    budget: Budget | None = None

    @property
    def name(self) -> str:
        return DENSE if self.indexer is None else repr(self.indexer)

    @property
    def columns(self) -> dict[str, str]:
        """What names the cell in every table."""
        return {"indexer": self.name, "budget": "" if self.budget is None else str(self.budget)}

    def k(self, context: int) -> int | None:
        """Keys to keep of a context of `context` tokens."""
        return None if self.budget is None else self.budget.at(context)


def alone(indexer: Indexer) -> bool:
    """Whether an index serves one budget: it reads or remembers what was chosen at that one."""
    return indexer.traits().remembers or "upstream" in indexer.needs


def parse_cells(
    indexers: str | Indexer | Cell | Iterable[str | Indexer | Cell],
    k: Budgets,
    dense: bool = True,
) -> list[Cell]:
    """Every indexer at every budget, and full attention, always in the same order.

    Cells among the indexers have their own budgets and stay as they are.
    Raises: InputError for a spec or a budget that cannot be read, for an indexer whose package is not
    installed, for two indexers of one name that are not the same, and when there is nothing to run.
    """
    # parse says what a class lacks, and what is no recipe.
    one = isinstance(indexers, str | bytes | Indexer | Cell | type) or not hasattr(
        indexers, "__iter__"
    )
    listed = (
        [cast("str | Indexer | Cell", indexers)] if one else list(cast("Iterable[Any]", indexers))
    )
    recipes = [parse(spec) for spec in listed if not isinstance(spec, Cell)]
    without = isinstance(k, str | list | tuple) and not k
    if recipes and without:
        raise InputError(f"{recipes[0]} has no budget; say how many keys: -k 16, or 1%")
    if not recipes and not without and k is not None:
        raise InputError(f"k = {k} has no indexer to keep so many keys; add --indexer SPEC")
    budgets = parse_budgets(k) if recipes else []
    cells = [Cell(recipe, budget) for recipe in recipes for budget in budgets]
    cells += [cell for cell in listed if isinstance(cell, Cell)]
    if dense:
        cells.append(Cell())
    if not cells:
        raise InputError("no indexer; give one, or let dense attention run")
    of_all(require_able(cell.indexer) for cell in cells if cell.indexer is not None)
    return in_order({(cell.name, cell.budget): cell for cell in cells}.values())


def with_own_k(cells: Sequence[Cell], own_k: int | None, longest: int) -> list[Cell]:
    """The cells, in which what a model's own indexer lists is asked for at its own number of keys too.

    Beyond that it has no list: larger budgets, and none, are that one. Raises: InputError for a share that is larger.
    """
    ks = {cell: cell.k(longest) or 0 for cell in cells if isinstance(cell.indexer, native)}
    if not ks or own_k is None:
        return list(cells)
    for cell, k in ks.items():
        share = cell.budget is not None and cell.budget.percent and cell.budget != UNCAPPED
        if share and k > own_k:
            raise InputError(
                f"{cell.indexer} has lists of {own_k:,} keys, and {cell.budget} of {longest:,} are {k:,}; "
                "give k in keys"
            )
    kept = [cell for cell in cells if ks.get(cell, 0) < own_k]
    return in_order([*kept, *(Cell(cell.indexer, Budget(own_k)) for cell in ks)])


def require_able(recipe: Indexer) -> Indexer:
    """Require that a recipe can stand in a table and that its package is there.

    Raises: InputError, by the recipe's name.
    """
    try:
        hash(recipe)
    except TypeError as error:
        raise InputError(
            f"{recipe} cannot be told from others: {error}; hold tuples and tensors in it"
        ) from None
    for one in within(recipe):
        package = getattr(one, "requires", "")
        if package and find_spec(package) is None:
            raise InputError(
                f"{recipe} needs {package}, which is not installed; pip install 'topkit[{package}]'"
            )
    return recipe


def needs(cells: Iterable[Cell]) -> frozenset[str]:
    """All inputs that the cells' indexers read."""
    return frozenset(name for cell in cells if cell.indexer for name in cell.indexer.needs)


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Full attention first, then by name and budget."""
    return sorted(
        set(cells),
        key=lambda cell: (
            cell.indexer is not None,
            cell.name,
            cell.budget is not None and cell.budget.percent,
            0 if cell.budget is None else cell.budget.amount,
        ),
    )


def chunks(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """The cells in chunks of at most `size`."""
    return [list(cells[at : at + size]) for at in range(0, len(cells), size)]
