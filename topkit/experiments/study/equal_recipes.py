"""What study.json says of a leaderboard: each recipe as it ran at each budget of bytes."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from topkit.documents import Number, Whole
from topkit.experiments.runs.cells import Cell
from topkit.indexers.equal_bytes import ByteBudget, Chosen, at_equal_bytes
from topkit.indexers.stated_cost import Shape, stated

LEADERBOARD, RAN, KEY_BYTES = "leaderboard", "ran", "key bytes"
# bytes: the budget, "" for recipes as they are written; why: in what it departs; over: it reads more, and did not run.
SCHEMA: Any = {
    f"{RAN}?": [
        {
            "recipe": str,
            "bytes": str,
            "length": Whole(1),
            "k": str,
            "ran": str,
            "read?": Number(0, 1e30),
            "why?": str,
            "over?": bool,
        }
    ],
    f"{KEY_BYTES}?": Number(0, 1e30),
    f"{LEADERBOARD}?": bool,
}


def ran(
    cells: Sequence[Cell], budgets: Sequence[ByteBudget], shapes: Mapping[int, Shape]
) -> dict[str, Any]:
    """The recipes of cells as budgets have them, at layers of a shape for each length; and what keys take."""
    rows = [
        _row(cell, budget, length, shape)
        for cell in cells
        if cell.indexer is not None
        for budget in budgets or (None,)
        for length, shape in shapes.items()
    ]
    return {RAN: rows, KEY_BYTES: next(iter(shapes.values())).key_bytes}


def _row(cell: Cell, budget: ByteBudget | None, length: int, shape: Shape) -> dict[str, Any]:
    assert cell.indexer is not None
    here = replace(shape, k=cell.k(length) or shape.T)
    if budget is None:
        cost = stated(cell.indexer, here)
        chosen = Chosen(cell.indexer, None if cost is None else cost.read / here.T)
    else:
        chosen = at_equal_bytes(cell.indexer, budget, here)
    row: dict[str, Any] = {
        "recipe": repr(cell.indexer),
        "bytes": "" if budget is None else str(budget),
        "length": length,
        "k": str(cell.budget or ""),
        "ran": repr(chosen.recipe),
    }
    if chosen.read is not None:
        row["read"] = round(chosen.read, 4)
    if chosen.why:
        row |= {"why": chosen.why, "over": chosen.over}
    return row
