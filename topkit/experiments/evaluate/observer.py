"""Fidelity of the selections behind the answers, observed where they are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from topkit.experiments.evaluate.batch import Asked
from topkit.experiments.evaluate.board import Board
from topkit.experiments.evaluate.lists import Lists, as_index
from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.runs.fidelity_rows import rows
from topkit.experiments.runs.judged import Exact, Judged
from topkit.fidelity import ANSWER_KEY, of_units
from topkit.kernels.blocks import blocks
from topkit.kernels.rounding import Rounding


@dataclass
class Observer:
    """Judges what all streams select, against the exact rows of the queries that selected.

    The rows of a batch are those of the streams, one after the other.
    """

    streams: Sequence[Stream]
    board: Board
    slots: Tensor | None = None

    @classmethod
    def of(cls, streams: Sequence[Stream], queries: int, slots: Tensor | None = None) -> Observer:
        """Of so many queries of each row; slots [R, Tq]: the key that each is to find, -1 for none."""
        return cls(streams, Board(sum(stream.rows for stream in streams), queries), slots)

    def __call__(self, asked: Asked, lists: Lists, output: Tensor) -> None:
        for places, judged in _judged(asked, lists, output, self.wanted(asked, lists)):
            numbers = [lists.numbers[place] for place in places]
            self.board.note(asked.layer, numbers, asked.first, judged)

    def layers(
        self, layers: Sequence[int], first: int, asked: Asked, lists: Lists, output: Tensor
    ) -> None:
        """As a call for each of several layers, whose rows stand one behind the other.

        lists.numbers: of each layer again, behind `first` other rows.
        """
        each = len(lists.numbers) // len(layers)
        for places, judged in _judged(asked, lists, output, self.wanted(asked, lists, first)):
            for n, layer in enumerate(layers):
                own = [at for at, place in enumerate(places) if place // each == n]
                if own:
                    some = slice(own[0], own[-1] + 1)
                    columns = {name: x[some] for name, x in judged.columns.items()}
                    part = Judged(judged.level, judged.reference, columns)
                    numbers = [first + lists.numbers[place] for place in places[some]]
                    self.board.note(layer, numbers, asked.first, part)

    def wanted(self, asked: Asked, lists: Lists, first: int = 0) -> Tensor | None:
        """The keys [B, n] that the queries of the lists' rows, behind `first` others, are to find."""
        if self.slots is None:
            return None
        begin, numbers = asked.first, [first + number for number in lists.numbers]
        own = self.slots[:, begin : begin + len(asked.stops)]
        return own[torch.tensor(numbers, device=own.device)]

    def tables(
        self,
        questions: Sequence[int],
        real: Tensor,
        first: int,
        each: bool,
        steps: str,
        shadow: bool = False,
    ) -> Iterator[pa.Table]:
        """What was observed of the questions that each cell has a row of, a table a cell and level.

        real [B, Tq]: which of the queries count; `first` is the position of the first; `each` keeps
        every query, not the means over them; `steps`: whose they are, the question's or the answer's; `shadow`:
        whether the queries are those of the unchanged model.
        """
        real, count = real.cpu(), torch.arange(real.shape[1])
        for numbers, layers, judged in self.board.stacks():
            asked = torch.tensor([number % len(questions) for number in numbers])
            if not each:
                judged = means(judged, real[asked].repeat(len(layers), 1))
            by_layer = {n: x.unflatten(0, (len(layers), -1)) for n, x in judged.columns.items()}
            of_cells = dict[int, list[int]]()
            for place, number in enumerate(numbers):
                of_cells.setdefault(number - number % len(questions), []).append(place)
            for first_row, rows_of in of_cells.items():
                columns = {n: x[:, rows_of].flatten(0, 1) for n, x in by_layer.items()}
                own = asked[rows_of]
                counted = real[own].repeat(len(layers), 1)[:, None]
                places = {
                    **self._places(first_row, layers, len(own)),
                    "position": first + count if each else None,
                    "positions": 1 if each else counted.sum(-1, keepdim=True),
                    "steps": steps,
                    "shadow": shadow,
                    "question": torch.tensor(questions)[own].repeat(len(layers))[:, None, None],
                }
                one = Judged(judged.level, judged.reference, columns)
                yield rows(one, places, keep=counted if each else None)

    def _places(self, row: int, layers: Sequence[int], count: int) -> dict[str, Any]:
        """What the rows of a table say of the cell that a row of the batch is of, in each layer."""
        for stream in self.streams:
            if row < stream.rows:
                break
            row -= stream.rows
        cell = stream.cells[row]
        nbytes = [stream.nbytes(layer) / stream.rows for layer in layers]
        by_layer = {"layer": torch.tensor(layers), "index_bytes": torch.tensor(nbytes).double()}
        each = {n: x.repeat_interleave(count)[:, None, None] for n, x in by_layer.items()}
        unknown: dict[str, Any] = dict.fromkeys(ANSWER_KEY) if self.slots is None else {}
        return {**cell.columns, "k": cell.k(stream.context), **unknown, **each}


def _judged(
    asked: Asked, lists: Lists, output: Tensor, wanted: Tensor | None
) -> Iterator[tuple[Sequence[int], Judged]]:
    """Places among the rows of the lists, and what is judged of them: of heads, and of lists that they share.

    wanted [B, n]: the answers' keys, where any is known.
    """
    _, heads, count, wide = lists.selection.indices.shape
    # On a CPU, of long lists a few rows at a time: what is written of them is read again from its caches.
    for part in blocks(len(lists.numbers), heads * count * wide, output.device):
        exact = exact_of(asked.of(part), max(lists.budgets[part]))
        own = None if wanted is None else wanted[part]
        yield from judged_lists(exact, lists, part, output[part], own)


def exact_of(asked: Asked, k: int) -> Exact:
    """The exact rows of some queries, to be judged at k at most."""
    return Exact(
        asked.queries,
        None,
        None,
        k,
        scaling=asked.scaling,
        layer=asked.layer,
        stop=asked.stops[None],
        scores=asked.scores,
        rounding=Rounding.of_norms(asked.queries, asked.norms),
        weigh=asked.cache.weigh,
        softmax=asked.softmax,
    )


def judged_lists(
    exact: Exact,
    lists: Lists,
    part: slice,
    output: Tensor,
    wanted: Tensor | None,
    name: str = "the selection",
) -> Iterator[tuple[Sequence[int], Judged]]:
    """What is judged of a part of the rows of some lists, whose exact rows and outputs these are."""
    heads, device = lists.selection.indices.shape[1], output.device
    places = range(len(lists.numbers))[part]
    selection = lists.of(places)
    judged = exact.heads(selection, lists.ks[part], name, output=output)
    found = {} if wanted is None else exact.found(selection, wanted, judged)
    judged = judged.beside(found)
    if lists.selection.log_weights is not None:
        judged = _without_estimates(judged, lists.weighted[part])
    yield places, judged
    for units in sorted({*lists.units[part]} - {heads}):
        shared = [place for place in places if lists.units[place] == units]
        rows = as_index([place - part.start for place in shared], device)
        keys = of_units({name: x[rows] for name, x in found.items()}, units)
        own, ks = exact.of(rows), lists.ks[as_index(shared, device)]
        yield shared, own.units(lists.of(shared, units), ks, name).beside(keys)


def _without_estimates(judged: Judged, weighted: Sequence[bool]) -> Judged:
    """What was judged, with no mass estimated of the rows whose lists are not weighted."""
    estimate = judged.columns["mass_estimate"]
    plain = ~torch.tensor(weighted, device=estimate.device)[:, None, None]
    columns = {**judged.columns, "mass_estimate": estimate.masked_fill(plain, nan)}
    return Judged(judged.level, judged.reference, columns)


def means(judged: Judged, real: Tensor) -> Judged:
    """The means [B, H, 1] over the queries that are real [B, Tq] and not trivial.

    A metric's mean is over the queries where it has a meaning; where all are trivial, they count.
    """
    real = real[:, None]
    trivial = judged.columns["trivial"] | ~real
    all_trivial = trivial.all(-1, keepdim=True)
    counted = real & (~trivial | all_trivial)
    columns = {"trivial": all_trivial}
    for name in judged.columns.keys() - columns.keys():
        column = judged.columns[name].double()
        there = counted & ~column.isnan()
        columns[name] = column.where(there, 0.0).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    return Judged(judged.level, judged.reference, columns)
