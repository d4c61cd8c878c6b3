"""A curve: what the cells of a task at a length scored and selected, haystack by haystack."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.parts import digest
from topkit.experiments.study.kinds import kind_of
from topkit.experiments.study.stats import Array
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget
from topkit.indexers.spec import unknown

# A prompt that has so much of its label needs no word.
NEAR = 0.8


@dataclass(frozen=True)
class Curve:
    """A task at a length: C cells on the same H haystacks.

    questions [H]; rates, token_rates (the share of an answer's tokens that are right), losses and
    fidelity [C, H], NaN where there is nothing to judge; heads:
    mean recall [layers, heads] of a cell, weights: the mean weight of the answer's key under full attention, by its
    queries; held_out: haystacks in words that the reference model was
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
    weights: Mapping[Cell, Array] = field(default_factory=dict[Cell, Array])

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
        if metric not in self._means:
            self._means[metric] = self._mean(self.fidelity[metric])
        return self._means[metric]

    @cached_property
    def _means(self) -> dict[str, Array]:
        """Those that were asked for: figures and tables ask for each cell's."""
        return {}

    def _mean(self, values: Array) -> Array:
        weights = self.questions * (~self._trivial | self.trivial[:, None])
        weights = np.where(self._trivial & np.isnan(values), 0, weights)
        total = (np.where(weights > 0, values, 0) * weights).sum(1)
        means = np.divide(
            total, weights.sum(1), out=np.full(len(values), np.nan), where=weights.any(1)
        )
        means.flags.writeable = False  # they are handed out again
        return means

    @cached_property
    def _trivial(self) -> NDArray[np.bool_]:
        """Where nothing is to choose, since k covers all that is visible [C, H]."""
        none = np.zeros((len(self.cells), len(self.haystacks)))
        return self.counts.get("trivial", none) == 1

    @cached_property
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


def settings_of(curves: Sequence[Curve]) -> list[str]:
    """What each is called beside the others: its setting, and from where on it is sparse where that differs."""
    told = [curve.setting for curve in curves]
    return told if len(set(told)) == len(told) else [curve.title for curve in curves]
