"""From tables to curves: one Curve a task and length, each cell's means per haystack."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import DENSE, Cell, in_order
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
    rows, by_head = _split(haystacks), _split(heads)
    return [_curve(key, rows[key], by_head.get(key, [])) for key in sorted(rows)]


def _split(table: pa.Table) -> dict[Key, list[dict[str, Any]]]:
    groups: dict[Key, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["task"], row["length"], row["sparse_from"]), []).append(row)
    return groups


def _curve(key: Key, rows: list[dict[str, Any]], heads: list[dict[str, Any]]) -> Curve:
    task, length, sparse_from = key
    measure = MEASURES.get(task.partition(":")[0], SCORE)
    if measure == SCORE and all(row.get(SCORE) is None for row in rows):
        measure = BARE
    cell_of = _cells(rows)
    rows_of: dict[Cell, dict[int, dict[str, Any]]] = {}
    # By their texts first: to hash a recipe takes longer than to read a row.
    by_text: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_text.setdefault(_written(row), {})[row["haystack"]] = row
    for text, its in by_text.items():
        rows_of.setdefault(cell_of[text], {}).update(its)
    cells = _by_kind(rows_of)
    every = set[int]().union(*rows_of.values())
    whole = sorted(every.intersection(*rows_of.values()))
    if not whole:
        raise InputError(
            f"no haystack of {task} at {length} was run by every cell; run the study on to its end"
        )
    table = [[rows_of[cell][h] for h in whole] for cell in cells]
    first = table[0]

    def matrix(column: str) -> Array:
        return np.array([[row.get(column) for row in its] for its in table], dtype=float)

    questions = np.array([row["questions"] for row in first], dtype=float)
    tokens = np.array([row["answer_tokens"] for row in first], dtype=float)
    return Curve(
        task,
        length,
        sparse_from,
        measure,
        cells,
        tuple(whole),
        questions,
        matrix(measure),
        matrix("token_accuracy"),
        {loss: matrix(loss) for loss in LOSSES},
        {metric: matrix(metric) for metric in FIDELITY},
        float(tokens @ questions / questions.sum()),
        _heads(heads),
        tuple(row.get("family") == "held-out" for row in first),
        len(every) - len(whole),
        {name: matrix(name) for name in COUNTS},
        matrix("tokens")[0],
        float(first[0].get("parts") or 1),
        weights=_heads(heads, "w"),
    )


def _written(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["indexer"], row["budget"]


def _cells(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Cell]:
    """The cell that each indexer and budget of the rows stand for."""
    return {
        (name, budget): Cell() if name == DENSE else Cell(recorded(name), parse_budget(budget))
        for name, budget in set(map(_written, rows))
    }


def _by_kind(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Full attention, oracles, real indexers, controls; each by name, then by budget."""
    kinds = [DENSE, "oracle", "real", "control"]
    return tuple(sorted(in_order(cells), key=lambda cell: kinds.index(kind_of(cell))))


def _heads(rows: list[dict[str, Any]], column: str = "recall") -> dict[Cell, Array]:
    known: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for row in rows:
        if row.get(column) is not None:
            its = known.setdefault(_written(row), {})
            its[row["layer"], row["head"]] = row[column]
    cell_of, merged = _cells(rows), dict[Cell, dict[tuple[int, int], float]]()
    for text, its in known.items():
        merged.setdefault(cell_of[text], {}).update(its)
    return {cell: _grid(its) for cell, its in merged.items()}


def _grid(recalls: dict[tuple[int, int], float]) -> Array:
    """NaN where a layer or head was not judged."""
    grid = np.full([1 + max(axis) for axis in zip(*recalls, strict=True)], np.nan)
    for place, recall in recalls.items():
        grid[place] = recall
    return grid


def load(run: Path, *others: Path) -> list[Curve]:
    """The curves of a run, from its rows or, where those are gone, from its condensed tables.

    Of several runs of one identity, from the rows of all. Nothing is written.
    Raises: InputError when the folder holds neither, and for runs that cannot be joined.
    """
    return curves(*condensed(run, *others))
