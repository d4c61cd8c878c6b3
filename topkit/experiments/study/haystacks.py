"""Curves of some haystacks, and of the haystacks of several seeds together."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.curves import curves
from topkit.experiments.study.stats import Array
from topkit.experiments.tasks import task_name

if TYPE_CHECKING:  # which imports transformers; a report does without
    from topkit.experiments.evaluate.request import Part


def curves_of_parts(run: Path, parts: Sequence[Part]) -> list[Curve]:
    """The curves of a run, of the haystacks and cells of some parts alone, whatever else it holds."""
    wanted = {
        (task_name(task), length, haystack, *cell.columns.values())
        for part in parts
        for task in part.tasks
        for length in part.lengths
        for haystack in range(part.first, part.first + part.haystacks)
        for cell in part.cells
    }
    table, heads = condensed(run)
    place = ("task", "length", "haystack", "indexer", "budget")
    rows = [row for row in table.to_pylist() if tuple(row[name] for name in place) in wanted]
    return curves(pa.Table.from_pylist(rows, table.schema), heads) if rows else []


def joined(several: Sequence[Sequence[Curve]]) -> list[Curve]:
    """The curves of several seeds as one each: the cells that all have, on the haystacks of all."""
    by_key: dict[tuple[str, int, str], list[Curve]] = {}
    for of_seed in several:
        for curve in of_seed:
            by_key.setdefault((curve.task, curve.length, curve.sparse_from), []).append(curve)
    return [as_one(by_key[key]) for key in sorted(by_key)]


def as_one(curves: Sequence[Curve]) -> Curve:
    """The cells that all curves have, on the haystacks of all; what else it is, the first says."""
    first = curves[0]
    if len(curves) == 1:
        return first
    known = [{cell: place for place, cell in enumerate(curve.cells)} for curve in curves]
    cells = tuple(cell for cell in first.cells if all(cell in its for its in known))
    places = [[its[cell] for cell in cells] for its in known]

    def beside(values: Sequence[Array]) -> Array:
        return np.concatenate([x[its] for x, its in zip(values, places, strict=True)], axis=1)

    def each(maps: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        return {name: beside([one[name] for one in maps]) for name in maps[0]}

    questions = np.concatenate([curve.questions for curve in curves])
    tokens = np.array([curve.answer_tokens * curve.questions.sum() for curve in curves])
    return replace(
        first,
        cells=cells,
        haystacks=tuple(range(len(questions))),
        questions=questions,
        rates=beside([curve.rates for curve in curves]),
        token_rates=beside([curve.token_rates for curve in curves]),
        losses=each([curve.losses for curve in curves]),
        fidelity=each([curve.fidelity for curve in curves]),
        answer_tokens=float(tokens.sum() / questions.sum()),
        heads={
            cell: _mean([c.heads[cell] for c in curves if cell in c.heads])
            for cell in _headed(curves, cells)
        },
        held_out=tuple(held for curve in curves for held in curve.held_out),
        dropped=sum(curve.dropped for curve in curves),
        counts=each([curve.counts for curve in curves]),
        tokens=np.concatenate([curve.tokens for curve in curves]),
    )


def _headed(curves: Sequence[Curve], cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if any(cell in curve.heads for curve in curves)]


def _mean(grids: Sequence[Array]) -> Array:
    """Of those of one shape; a seed whose heads had nothing to choose may lack the last ones."""
    shape = max(grid.shape for grid in grids)
    whole = [grid for grid in grids if grid.shape == shape]
    return np.mean(whole, axis=0)
