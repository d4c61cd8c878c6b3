"""Cells at a budget of bytes: every recipe with the parameter by which it reads as much as the others."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell, in_order
from topkit.grammar import short
from topkit.indexers.equal_bytes import ByteBudget, Chosen, at_equal_bytes
from topkit.indexers.stated_cost import Shape


@dataclass(frozen=True)
class EqualCells:
    """The cells that a budget of bytes makes of others, and what is said of them."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


def shape_of(queries: Tensor, keys: Tensor, values: Tensor | None, tokens: int) -> Shape:
    """The shape of a layer of so many tokens, by tensors [B, H, ?, D] of it."""
    heads, width = keys.shape[1], keys.shape[3]
    value_width = width if values is None else values.shape[3]
    size = keys.element_size()
    return Shape(Hq=queries.shape[1], Hk=heads, D=width, Dv=value_width, T=tokens, e=size)


def at_budgets(
    cells: Sequence[Cell], budgets: Sequence[ByteBudget], shape: Shape, *, leave_out: bool = False
) -> EqualCells:
    """The cells at each of some budgets, as `at_budget` makes them; at none, as they are."""
    if not budgets:
        return EqualCells(tuple(cells), ())
    each = [at_budget(cells, budget, shape, leave_out=leave_out) for budget in budgets]
    notes = dict.fromkeys(note for one in each for note in one.notes)
    return EqualCells(tuple(in_order(cell for one in each for cell in one.cells)), tuple(notes))


def at_budget(
    cells: Sequence[Cell], budget: ByteBudget, shape: Shape, *, leave_out: bool = False
) -> EqualCells:
    """The cells, each recipe chosen for its own k of the T tokens of a shape.

    Raises: InputError that names the recipes which read more whatever their parameters; with leave_out, notes
    name them, and they are left out.
    """
    chosen = {cell: _chosen(cell, budget, shape) for cell in cells}
    over = [cell for cell, one in chosen.items() if one is not None and one.over]
    if over and not leave_out:
        raise InputError(
            f"{budget} cannot be met: {'; '.join(_departing(chosen, over))}; leave out what reads more, "
            "or give more bytes"
        )
    kept = {cell: one for cell, one in chosen.items() if cell not in over}
    if not any(one is not None and not one.why for one in kept.values()):
        lines = "; ".join(_departing(chosen, chosen)) or "there is no indexer"
        raise InputError(f"no indexer reads {budget}: {lines}; give other bytes, or other indexers")
    made = (
        cell if one is None else replace(cell, indexer=one.recipe) for cell, one in kept.items()
    )
    return EqualCells(tuple(in_order(made)), tuple(_notes(kept, over, chosen, budget, shape)))


def _chosen(cell: Cell, budget: ByteBudget, shape: Shape) -> Chosen | None:
    if cell.indexer is None:
        return None
    k = cell.k(int(shape.T)) or shape.T
    return at_equal_bytes(cell.indexer, budget, replace(shape, k=k))


def _notes(
    kept: dict[Cell, Chosen | None],
    over: Sequence[Cell],
    chosen: dict[Cell, Chosen | None],
    budget: ByteBudget,
    shape: Shape,
) -> list[str]:
    """What the budget is, what it changed, and what does not read it."""
    lines = [f"{budget}: {budget.at(shape):.4g} bytes a token and layer at {shape.T:,.0f} tokens"]
    changed: dict[str, list[str]] = {}
    for cell, one in kept.items():
        if one is not None and cell.indexer is not None and one.recipe != cell.indexer:
            pair = f"{short(cell.indexer)} as {short(one.recipe)}"
            changed.setdefault(pair, []).append(str(cell.budget))
    lines += [f"{pair}, at k {', '.join(ks)}" for pair, ks in changed.items()]
    lines += _departing(kept, kept)
    lines += [f"left out: {line}" for line in _departing(chosen, over)]
    return lines


def _departing(chosen: dict[Cell, Chosen | None], cells: Iterable[Cell]) -> list[str]:
    """A line for each recipe that does not read the budget, and why."""
    some = (chosen[cell] for cell in cells)
    return list(
        dict.fromkeys(f"{short(x.recipe)} {x.why}" for x in some if x is not None and x.why)
    )
