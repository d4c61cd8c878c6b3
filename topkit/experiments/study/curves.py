"""From tables to curves: one Curve a task and length, each cell's means per haystack."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topkit.errors import InputError
from topkit.experiments.evaluate.haystack_means import condensed
from topkit.experiments.runs.cells import DENSE, Cell, in_order
from topkit.experiments.runs.parts import digest
from topkit.experiments.study.kinds import kind_of
from topkit.experiments.study.stats import Array
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budget
from topkit.indexers.spec import recorded, unknown

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
    "unit_recall",
    "unit_mass",
    "output_error",
    "kept",
    "bytes_read",
    "index_bytes",
)
# How many rows the fidelity of a haystack is the mean of, how many have nothing to choose, and whether all.
COUNTS = ("rows", "trivial_rows", "trivial")

# A prompt that has so much of its label needs no word.
NEAR = 0.8


@dataclass(frozen=True)
class Curve:
    """A task at a length: C cells on the same H haystacks.

    questions [H]; rates, token_rates (the share of an answer's tokens that are right), losses and
    fidelity [C, H], NaN where there is nothing to judge; heads:
    mean recall [layers, heads] of a cell; held_out: haystacks in words that the reference model was
    not trained on; dropped: haystacks that some cell lacks; counts [C, H]: rows of fidelity, see COUNTS;
    tokens [H]: what prompts hold in truth, NaN where nobody counted; parts: how many references an
    answer is scored by, each for itself; model: its
    name, where there are several.
    """

    task: str
    length: int
    sparse_from: str
    measure: str
    cells: tuple[Cell, ...]
    haystacks: tuple[int, ...]
    questions: Array
    rates: Array
    token_rates: Array
    losses: Mapping[str, Array]
    fidelity: Mapping[str, Array]
    answer_tokens: float
    heads: Mapping[Cell, Array]
    held_out: tuple[bool, ...] = ()
    dropped: int = 0
    counts: Mapping[str, Array] = field(default_factory=dict[str, Array])
    tokens: Array = field(default_factory=lambda: np.zeros(0))
    parts: float = 1.0
    model: str = ""

    @property
    def title(self) -> str:
        return f"{self.setting}, sparse from the {self.sparse_from}"

    @property
    def setting(self) -> str:
        """Model, task and length."""
        model = f"{self.model}: " if self.model else ""
        return f"{model}{self.task}, {self.length} tokens{self._true}"

    @property
    def _true(self) -> str:
        """The prompts' true tokens in words, where the label is far from them."""
        counted = self.tokens[np.isfinite(self.tokens)].round().astype(int)
        if not counted.size or counted.min() + self.answer_tokens >= NEAR * self.length:
            return ""
        low, high = counted.min(), counted.max()
        return f" ({low} in truth)" if low == high else f" ({low} to {high} in truth)"

    @property
    def slug(self) -> str:
        """The curve's part of a file's name."""
        model = f"{self.model}-" if self.model else ""
        name = f"{model}{self.task}-{self.length}-{self.sparse_from}"
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower())
        # A task may hold a path, and a file's name at most 255 bytes.
        return slug if len(slug) <= 120 else f"{slug[:100]}-{digest(name)}"

    @property
    def trials(self) -> Array:
        """How much was right or wrong on each haystack [H]: questions, or the tokens of answers."""
        by_token = self.measure == "token_accuracy"
        return self.questions * self.answer_tokens if by_token else self.questions

    @property
    def running_text(self) -> bool:
        """Whether there are no right answers, so that NLL says what accuracy cannot."""
        return self.task.partition(":")[0] == "books"

    def mean(self, metric: str) -> Array:
        """A fidelity metric over haystacks [C], of those that have something to choose unless none has."""
        values = self.fidelity[metric]
        weights = self.questions * (~self._trivial | self.trivial[:, None])
        weights = np.where(self._trivial & np.isnan(values), 0, weights)
        total = (np.where(weights > 0, values, 0) * weights).sum(1)
        return np.divide(
            total, weights.sum(1), out=np.full(len(values), np.nan), where=weights.any(1)
        )

    @property
    def _trivial(self) -> NDArray[np.bool_]:
        """Where nothing is to choose, since k covers all that is visible [C, H]."""
        none = np.zeros((len(self.cells), len(self.haystacks)))
        return self.counts.get("trivial", none) == 1

    @property
    def trivial(self) -> NDArray[np.bool_]:
        """The cells that have nothing to choose on any haystack [C]."""
        return np.logical_and.reduce(self._trivial, 1)

    def where(self, *kinds: str, budget: Budget | None = None) -> list[int]:
        """The places of the cells of some kinds, at one budget or at all."""
        return [
            place
            for place, cell in enumerate(self.cells)
            if kind_of(cell) in kinds and budget in (None, cell.budget)
        ]

    def place(self, indexer: Indexer | None, budget: Budget | None = None) -> int | None:
        """The place of an indexer at a budget, or at its first; without an indexer, full attention's."""
        for place, cell in enumerate(self.cells):
            if cell.indexer == indexer and budget in (None, cell.budget):
                return place
        return None

    @property
    def kept(self) -> Array:
        """The keys that each cell kept [C]: its mean number where that was counted, else k."""
        counted = self.mean("kept")
        k = np.array([cell.k(self.length) or np.nan for cell in self.cells], dtype=float)
        return np.where(np.isfinite(counted), counted, k)

    @property
    def unknown(self) -> list[unknown]:
        """The indexers that cannot be made here."""
        recipes = dict.fromkeys(cell.indexer for cell in self.cells)
        return [recipe for recipe in recipes if isinstance(recipe, unknown)]

    @property
    def observed(self) -> bool:
        """Whether any selection was judged that had something to choose."""
        return bool(np.isfinite(self.fidelity["recall"][~self.trivial]).any())

    @property
    def budgets(self) -> list[Budget]:
        """Every budget of a cell, the smallest first."""
        every = {cell.budget for cell in self.cells if cell.budget is not None}
        return sorted(every, key=lambda k: (k.at(self.length), k.percent))

    @property
    def budget(self) -> Budget | None:
        """The budget that most real indexers were run at; None where full attention ran alone."""
        places = self.where("real") or self.where("oracle", "control")
        budgets = [self.cells[place].budget for place in places]
        return max(dict.fromkeys(budgets), key=budgets.count, default=None)


def curves(haystacks: pa.Table, heads: pa.Table) -> list[Curve]:
    """The curves of two condensed tables (see topkit.experiments.evaluate.haystack_means)."""
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
    row_of = {(cell_of[_written(row)], row["haystack"]): row for row in rows}
    cells = _by_kind({cell for cell, _ in row_of})
    every = {haystack for _, haystack in row_of}
    whole = sorted(h for h in every if all((cell, h) in row_of for cell in cells))
    if not whole:
        raise InputError(
            f"no haystack of {task} at {length} was run by every cell; run the study on to its end"
        )

    def matrix(column: str) -> Array:
        values = [[row_of[cell, h].get(column) for h in whole] for cell in cells]
        return np.array(values, dtype=float)

    questions = np.array([row_of[cells[0], h]["questions"] for h in whole], dtype=float)
    tokens = np.array([row_of[cells[0], h]["answer_tokens"] for h in whole], dtype=float)
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
        tuple(row_of[cells[0], h].get("family") == "held-out" for h in whole),
        len(every) - len(whole),
        {name: matrix(name) for name in COUNTS},
        matrix("tokens")[0],
        float(row_of[cells[0], whole[0]].get("parts") or 1),
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


def _heads(rows: list[dict[str, Any]]) -> dict[Cell, Array]:
    recalls: dict[Cell, dict[tuple[int, int], float]] = {}
    cell_of = _cells(rows)
    for row in rows:
        if row["recall"] is not None:
            recalls.setdefault(cell_of[_written(row)], {})[row["layer"], row["head"]] = row[
                "recall"
            ]
    return {cell: _grid(of_cell) for cell, of_cell in recalls.items()}


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
