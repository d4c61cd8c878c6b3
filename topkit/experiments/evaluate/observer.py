"""Fidelity of the selections behind the answers, observed where they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from topkit.experiments.decode.driver import Choice
from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.runs.fidelity_rows import rows
from topkit.experiments.runs.judged import Exact, Judged
from topkit.indexers.base import Cache, Selection
from topkit.indexers.exact import true_scores_of


@dataclass
class Observer:
    """Judges every selection of one stream, against the exact rows of the queries that made it."""

    stream: Stream
    scaling: Mapping[int, float]
    # (layer, level) -> what was judged, a piece of the queries after the other.
    pieces: dict[tuple[int, str], list[Judged]] = field(default_factory=dict)

    def __call__(
        self,
        layer: int,
        queries: Tensor,
        cache: Cache,
        selection: Selection,
        choice: Choice,
    ) -> None:
        k = self.stream.k
        assert k is not None
        exact = Exact(
            queries,
            cache.keys,
            cache.values,
            k,
            scaling=self.scaling[layer],
            layer=layer,
            stop=choice.stops[None],
            scores=choice.memo.get(true_scores_of(cache.keys.shape[2])),
        )
        for judged in exact.judged(selection, k, self.stream.cell.name):
            self.pieces.setdefault((layer, judged.level), []).append(judged)

    def tables(
        self, questions: Sequence[int], real: Tensor, first: int, each: bool, steps: str
    ) -> Iterator[pa.Table]:
        """What was observed of the questions in the stream's rows, a table a layer and level.

        real [B, Tq]: which of the queries count; `first` is the position of the first; `each` keeps
        every query, not the means over them; `steps`: whose they are, the question's or the answer's.
        """
        counted = real.cpu()[:, None]
        count = torch.arange(real.shape[1])
        span = (
            {"position": first + count, "positions": 1}
            if each
            else {"position": None, "positions": counted.sum(-1, keepdim=True)}
        )
        for (layer, _), pieces in self.pieces.items():
            places = {
                **self.stream.cell.columns,
                **span,
                "steps": steps,
                "k": self.stream.k,
                "question": torch.tensor(questions)[:, None, None],
                "layer": layer,
                "index_bytes": self.stream.indices[layer].nbytes / self.stream.rows,
            }
            judged = joined(pieces)
            if each:
                yield rows(judged, places, keep=counted)
            else:
                yield rows(means(judged, real), places)


def joined(pieces: Sequence[Judged]) -> Judged:
    """The pieces of the queries as one."""
    level, reference, columns = pieces[0]
    together = {name: torch.cat([piece.columns[name] for piece in pieces], -1) for name in columns}
    return Judged(level, reference, together)


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
