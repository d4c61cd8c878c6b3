"""What an attachment observes: the selections of a model that decodes, as fidelity rows."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor

from topkit.experiments.decode.driver import Choice
from topkit.experiments.runs.fidelity_rows import rows, table
from topkit.experiments.runs.judged import Exact
from topkit.indexers.base import Cache, Indexer, Selection, Step
from topkit.indexers.budget import Budget
from topkit.indexers.exact import true_scores_of


class Observer:
    """Judges selections as they are made: a row a call of generate, row of the batch, layer, head, position."""

    def __init__(self, indexer: Indexer, budget: Budget) -> None:
        self._cell = {"indexer": repr(indexer), "budget": str(budget)}
        self._parts: list[pa.Table] = []
        # Calls of generate so far.
        self.call = 0

    def note(
        self,
        queries: Tensor,
        cache: Cache,
        selection: Selection,
        k: int,
        step: Step,
        choice: Choice,
        index_bytes: int,
    ) -> None:
        """Judge what queries [B, Hq, Tq, D] selected."""
        batch, stops = queries.shape[0], choice.stops
        exact = Exact(
            queries,
            cache.keys,
            cache.values,
            k,
            scaling=step.scaling,
            layer=step.layer,
            start=step.start,
            stop=stops[None],
            scores=choice.memo.get(true_scores_of(cache.keys.shape[2])),
        )
        start = torch.zeros_like(stops[:1]) if step.start is None else step.start
        row = torch.arange(batch)[:, None, None]
        places = {
            "call": self.call,
            "row": row,
            "sample": row,
            "layer": step.layer,
            "position": stops - 1 - start[:, None, None],
            "k": k,
            "index_bytes": index_bytes / batch,
        }
        self._parts += [
            rows(judged, places) for judged in exact.judged(selection, k, self._cell["indexer"])
        ]

    def table(self) -> pa.Table:
        """All rows so far."""
        return table("attach", self._parts, **self._cell).combine_chunks()
