"""Selections in shadow: what each cell would choose for the queries of the unchanged model, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from topkit.experiments.decode.driver import tokens
from topkit.experiments.evaluate.batch import Asked, Batch, dense_output
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.lists import Chosen, stacked
from topkit.experiments.evaluate.observer import Observer, exact_of, judged_lists
from topkit.experiments.evaluate.own_indexer import RowsIndex
from topkit.experiments.evaluate.shared_prefix import passed
from topkit.experiments.evaluate.stepped import together
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.judged import Exact
from topkit.indexers.budget import UNCAPPED


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
) -> None:
    """Let a dense stream read tokens [Q, t], and recipes choose for its queries, or read along alone."""
    listed = any(stream.reads_lists for stream in shadows)
    own = RowsIndex(prefix, [dense], prompt, reading=listed)
    batch = Shadowed(prefix, [dense], shadows=shadows, choosing=choosing, observer=observer)
    passed(model, batch, [dense, *shadows], own, ids, 1)


@dataclass(frozen=True)
class Shadowed(Batch):
    """A dense stream, and recipes that choose for its queries: nothing is attended to by what they choose.

    choosing: whether they choose, or read along alone; observer: where what they choose is judged.
    """

    shadows: Sequence[ShadowStream] = ()
    choosing: bool = True
    observer: Observer | None = None

    def _sparse(self, asked: Asked, prefix: Prefix, inputs: dict[str, Any]) -> Tensor:
        output, first, exact = dense_output(asked, prefix), 0, None
        for stream in self.shadows:
            if asked.layer in stream.indices:
                # What is not judged matters to those alone that remember it.
                if not self.choosing or (self.observer is None and not stream.remembers):
                    if stream.indices[asked.layer].length < asked.cache.length:
                        stream.read(asked.layer, prefix, asked.cache, inputs, self.choosing)
                    continue
                whole = slice(0, stream.questions)
                every = list(self._chosen(stream, prefix, asked, whole, inputs))
                if self.observer is not None:
                    exact = exact or exact_of(asked, self._most(asked.cache.length))
                    for n in range(len(stream.budgets)):
                        self._judge(asked, exact, every[n :: len(stream.budgets)], first + n * stream.questions)  # fmt: skip
            first += stream.rows
        return output

    def _most(self, length: int) -> int:
        """The greatest budget of all cells."""
        return max(k for stream in self.shadows for _, k in stream._runs(length))

    def _judge(self, asked: Asked, exact: Exact, chosen: Sequence[Chosen], first: int) -> None:
        """Judge what one cell chose, whose rows stand behind `first` others."""
        observer, name = self.observer, repr(chosen[0].indexer)
        assert observer is not None
        for lists in stacked(chosen, asked.queries.shape[1], asked.cache.length):
            own, about = asked, exact
            if lists.place != slice(0, len(asked.stops)):
                own = asked.of(slice(None), lists.place)
                about = exact_of(own, exact.k)
            output = lists.attend(own.scores, own.cache, own.scaling, own.softmax)
            wanted = observer.wanted(own, lists, first)
            every = slice(0, len(lists.numbers))
            for places, judged in judged_lists(about, lists, every, output, wanted, name):
                numbers = [first + lists.numbers[place] for place in places]
                observer.board.note(own.layer, numbers, own.first, judged)
