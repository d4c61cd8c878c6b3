"""Selections in shadow: what each cell would choose for the queries of the unchanged model, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.experiments.decode.driver import piece, tokens
from topkit.experiments.evaluate.batch import Asked, Batch, dense_output
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.lists import Chosen, Lists, require_choices, stacked
from topkit.experiments.evaluate.observer import Observer, exact_of, judged_lists
from topkit.experiments.evaluate.own_indexer import RowsIndex
from topkit.experiments.evaluate.shared_prefix import passed
from topkit.experiments.evaluate.stepped import together
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.judged import Exact
from topkit.indexers.budget import UNCAPPED
from topkit.kernels.blocks import blocks


class ShadowStream(Stream):
    """One recipe behind a dense stream of some questions, whose rows serve all its budgets.

    `cells` has the cell of each question at each budget, as an observer counts rows; an index has a row a
    question.
    """

    @property
    def budgets(self) -> list[Cell]:
        return [cell for cell, _ in groupby(self.cells)]

    @property
    def questions(self) -> int:
        return self.rows // len(self.budgets)

    def nbytes(self, layer: int) -> int:
        return super().nbytes(layer) * len(self.budgets)

    def _runs(self, length: int) -> list[tuple[slice, int]]:
        """All questions, at each budget."""
        ks = [(cell, cell.k(self.context)) for cell in self.budgets]
        every = slice(0, self.questions)
        return [(every, max(k, length) if cell.budget == UNCAPPED else k) for cell, k in ks if k is not None]  # fmt: skip

    def by_cell(self, chosen: Sequence[Chosen], first: int) -> list[list[Chosen]]:
        """What each of its cells chose, whose rows stand behind `first` others."""
        cells = list[list[Chosen]]()
        for n in range(len(self.budgets)):
            begin = first + n * self.questions
            rows = slice(begin, begin + self.questions)
            cells.append([replace(one, rows=rows) for one in chosen[n :: len(self.budgets)]])
        return cells

    @property
    def remembers(self) -> bool:
        return self.indexer is not None and self.indexer.traits().remembers

    def read(self, layer: int, prefix: Prefix, cache: Any, inputs: dict[str, Any], choosing: bool) -> None:  # fmt: skip
        """Append what the dense stream read, and choose nothing; `choosing`: as if it chose meanwhile."""
        assert self.indexer is not None
        index, driver = self.indices[layer], self._driver(layer, prefix)
        lacks, begin = cache.length - index.length, index.length
        # Who sees no further than a query's own key when it chooses has read one key at a time.
        each = 1 if choosing and not self.indexer.traits().causal_codes else lacks
        inputs = {name: x for name, x in inputs.items() if name in self.indexer.needs}
        for first in range(0, lacks, each):
            own = {name: tokens(x, slice(first, first + each)) for name, x in inputs.items()}
            driver.append(index, cache.until(begin + first + each), own)


def shadow_streams(
    built: Built, cells: Sequence[Cell], questions: int, context: int
) -> list[ShadowStream]:
    """A stream of each recipe among the cells, at its budgets."""
    streams = list[ShadowStream]()
    sparse = (cell for cell in cells if cell.indexer is not None)
    for _, some in groupby(sparse, together):
        budgets = list(some)
        rows = [cell for cell in budgets for _ in range(questions)]
        indices = built.stream(budgets[:1], questions, context).indices
        streams.append(ShadowStream(rows, context, indices, built.seed))
    return streams


def in_shadow(
    model: PreTrainedModel,
    prefix: Mapping[int, Prefix],
    dense: Stream,
    shadows: Sequence[ShadowStream],
    ids: Tensor,
    prompt: int,
    observer: Observer | None,
    choosing: bool = True,
) -> Tensor:
    """Let a dense stream read tokens [Q, t], and recipes choose for its queries, or read along alone: the last logits."""
    listed = any(stream.reads_lists for stream in shadows)
    own = RowsIndex(prefix, [dense], prompt, reading=listed)
    batch = Shadowed(prefix, [dense], shadows=shadows, choosing=choosing, observer=observer)
    return passed(model, batch, [dense, *shadows], own, ids, 1)


@dataclass(frozen=True)
class Shadowed(Batch):
    """A dense stream, and recipes that choose for its queries: nothing is attended to by what they choose.

    choosing: whether they choose, or read along alone; observer: where what they choose is judged.
    """

    shadows: Sequence[ShadowStream] = ()
    choosing: bool = True
    observer: Observer | None = None

    def _sparse(self, asked: Asked, prefix: Prefix, inputs: dict[str, Any]) -> Tensor:
        first, cells = 0, list[list[Chosen]]()
        for stream in self.shadows:
            if asked.layer in stream.indices:
                # What is not judged matters to those alone that remember it.
                if self.choosing and (self.observer is not None or stream.remembers):
                    own, whole = asked, slice(0, stream.questions)
                    if self.observer is None:
                        own = self._remembered(stream, prefix, asked, inputs)
                    every = list(self._chosen(stream, prefix, own, whole, inputs))
                    cells += stream.by_cell(every, first)
                elif stream.indices[asked.layer].length < asked.cache.length:
                    stream.read(asked.layer, prefix, asked.cache, inputs, self.choosing)
            first += stream.rows
        if cells and self.observer is not None:
            self._judge(self.observer, asked, cells)
        return dense_output(asked, prefix)

    def _remembered(
        self, stream: ShadowStream, prefix: Prefix, asked: Asked, inputs: dict[str, Any]
    ) -> Asked:
        """Those of a stream's first queries whose choice it remembers; what came before them is read."""
        index, new = stream.indices[asked.layer], inputs["values"].shape[2]
        assert stream.indexer is not None
        begins = index.length == prefix.length == asked.cache.length - new
        whole = len(asked.stops) == new and "upstream" not in stream.indexer.needs
        forgotten = stream.indexer.remembered_from(new) if begins and whole else 0
        if not forgotten:
            return asked
        before = {name: tokens(x, slice(0, forgotten)) for name, x in inputs.items()}
        stream.read(asked.layer, prefix, asked.cache.until(prefix.length + forgotten), before, True)
        return asked.of(slice(None), slice(forgotten, new))

    def _judge(self, observer: Observer, asked: Asked, cells: Sequence[Sequence[Chosen]]) -> None:
        """Judge what all cells chose at once, as many of them as make no more floats than their choice."""
        length, heads = asked.cache.length, asked.queries.shape[1]
        exact = exact_of(asked, max(k for stream in self.shadows for _, k in stream._runs(length)))
        most = max(1, piece(asked.queries, length) // len(asked.stops))
        for begin in range(0, len(cells), most):
            chosen = [one for cell in cells[begin : begin + most] for one in cell]
            stacks = stacked(chosen, heads, length)
            require_choices(chosen, stacks, asked.stops)
            for lists in stacks:
                self._judge_lists(observer, asked, exact, lists)

    def _judge_lists(self, observer: Observer, asked: Asked, exact: Exact, lists: Lists) -> None:
        """Judge lists against the exact rows of the questions, which all cells share."""
        if lists.place != slice(0, len(asked.stops)):
            asked = asked.of(slice(None), lists.place)
            exact = exact_of(asked, exact.k)
        device, count = asked.queries.device, len(asked.queries)
        rows = torch.tensor([number % count for number in lists.numbers], device=device)
        own, wanted = asked.of(rows), observer.wanted(asked, lists)
        output = lists.attend(own.scores, own.cache, own.scaling, own.softmax)
        for part in blocks(len(rows), lists.selection.indices[0].numel(), device):
            keys = None if wanted is None else wanted[part]
            about = exact.of(rows[part])
            for places, judged in judged_lists(about, lists, part, output[part], keys):
                numbers = [lists.numbers[place] for place in places]
                observer.board.note(asked.layer, numbers, asked.first, judged)
