"""From tables to curves: one Curve a task and length, each cell's means per haystack."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topkit.errors import NoRows
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import DENSE, Cell, in_order
from topkit.experiments.study.columns import by_number, missing, numbered, numbers
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import kind_of
from topkit.experiments.study.stats import Array
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import recorded

# Accuracy is the score of what was said, by the rule of its format. A task whose answers are never right to
# the letter is judged by the share of its tokens; and a run without scores by answers right to the letter.
SCORE, BARE = "score", "exact_match"
MEASURES = {"books": "token_accuracy", "recite": "token_accuracy"}
# Of the true answer and of what full attention would say next, in nats a token.
LOSSES = ("nll", "kl")
# A curve's task, length and where its selectors begin.
Key = tuple[str, int, str]
KEY, CELL = ("task", "length", "sparse_from"), ("indexer", "budget")
FIDELITY = (
    "recall",
    "own_recall",
    "mass",
    "mass_ratio",
    "top1",
    "hit",
    "w",
    "unit_recall",
    "unit_mass",
    "ws",
    "output_error",
    "kept",
    "bytes_read",
    "index_bytes",
)
# How many rows the fidelity of a haystack is the mean of, how many have nothing to choose, and whether all.
COUNTS = ("rows", "trivial_rows", "trivial")


def curves(haystacks: pa.Table, heads: pa.Table) -> list[Curve]:
    """The curves of two condensed tables (see topkit.experiments.evaluate.condensed)."""
    cells, rows, by_head = _Cells(), _split(haystacks), _split(heads)
    return [_curve(key, rows[key], by_head.get(key), cells) for key in sorted(rows)]


class _Cells(dict[tuple[str, str], Cell]):
    """The cell that an indexer and a budget of a table stand for; each is read once."""

    def __missing__(self, written: tuple[str, str]) -> Cell:
        name, budget = written
        self[written] = Cell() if name == DENSE else Cell(recorded(name), parse_budget(budget))
        return self[written]


def _split(table: pa.Table) -> dict[Key, pa.Table]:
    """The rows of each curve."""
    if not table.num_rows:
        return {}
    keys, of = numbered(table, KEY)
    rows = by_number(of, len(keys))
    return {(key[0], key[1], key[2]): table.take(its) for key, its in zip(keys, rows, strict=True)}


def _curve(key: Key, rows: pa.Table, heads: pa.Table | None, known: _Cells) -> Curve:
    task, length, sparse_from = key
    measure = MEASURES.get(task.partition(":")[0], SCORE)
    if measure == SCORE and missing(rows, SCORE):
        measure = BARE
    written, of = numbered(rows, CELL)
    its = [known[name, budget] for name, budget in written]
    cells = _by_kind(its)
    place = {cell: number for number, cell in enumerate(cells)}
    haystacks, at = np.unique(rows["haystack"].to_numpy(), return_inverse=True)
    # The row of each cell on each haystack; -1 where it was not run.
    row_of = np.full((len(cells), len(haystacks)), -1)
    row_of[np.array([place[cell] for cell in its])[of], at] = np.arange(rows.num_rows)
    whole = (row_of >= 0).all(0)
    if not whole.any():
        raise NoRows(
            f"no haystack of {task} at {length} was run by every cell; run the study on to its end"
        )
    table = row_of[:, whole]
    first = rows.take(table[0]).to_pylist()

    def matrix(column: str) -> Array:
        return numbers(rows, column)[table]

    questions, tokens = matrix("questions")[0], matrix("answer_tokens")[0]
    return Curve(
        task,
        length,
        sparse_from,
        measure,
        cells,
        tuple(haystacks[whole].tolist()),
        questions,
        matrix(measure),
        matrix("token_accuracy"),
        {loss: matrix(loss) for loss in LOSSES},
        {metric: matrix(metric) for metric in FIDELITY},
        float(tokens @ questions / questions.sum()),
        _heads(heads, known, "recall"),
        tuple(row.get("family") == "held-out" for row in first),
        int((~whole).sum()),
        {name: matrix(name) for name in COUNTS},
        matrix("tokens")[0],
        float(first[0].get("parts") or 1),
        weights=_heads(heads, known, "w"),
    )


def _by_kind(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Full attention, oracles, real indexers, controls; each by name, then by budget."""
    kinds = [DENSE, "oracle", "real", "control"]
    return tuple(sorted(in_order(cells), key=lambda cell: kinds.index(kind_of(cell))))


def _heads(rows: pa.Table | None, known: _Cells, column: str) -> dict[Cell, Array]:
    """A column by layer and head of each cell that has it, NaN where a layer or head was not judged."""
    if rows is None or missing(rows, column):
        return {}
    rows = rows.filter(rows[column].is_valid())
    layer, head, values = (numbers(rows, name) for name in ("layer", "head", column))
    layer, head = layer.astype(int), head.astype(int)
    written, of = numbered(rows, CELL)
    # One recipe may stand under two names.
    merged: dict[Cell, list[NDArray[np.int64]]] = {}
    for (name, budget), its in zip(written, by_number(of, len(written)), strict=True):
        merged.setdefault(known[name, budget], []).append(its)
    grids: dict[Cell, Array] = {}
    for cell, parts in merged.items():
        its = np.concatenate(parts)
        grids[cell] = np.full((1 + layer[its].max(), 1 + head[its].max()), np.nan)
        grids[cell][layer[its], head[its]] = values[its]
    return grids


def load(run: Path, *others: Path) -> list[Curve]:
    """The curves of a run, from its rows or, where those are gone, from its condensed tables.

    Of several runs of one identity, from the rows of all. Nothing is written.
    Raises: InputError when the folder holds neither, and for runs that cannot be joined.
    """
    return curves(*condensed(run, *others))
