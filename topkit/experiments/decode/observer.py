"""What an attachment observes: the selections of a model that decodes, as fidelity rows."""

from __future__ import annotations

import threading
from itertools import count

import pyarrow as pa
import torch
from torch import Tensor

from topkit.experiments.decode.driver import Choice
from topkit.experiments.runs.fidelity_rows import rows, table
from topkit.experiments.runs.judged import Exact
from topkit.indexers.base import Cache, Indexer, Selection, Step
from topkit.indexers.budget import Budget
from topkit.indexers.exact import true_scores_of
from topkit.kernels.gather_attention import PLAIN, Softmax


class Observer:
    """Judges selections as they are made: a row a call of generate, row of the batch, layer, head, position."""

    def __init__(self, indexer: Indexer, budget: Budget) -> None:
        self._cell = {"indexer": repr(indexer), "budget": str(budget)}
        self._parts: list[pa.Table] = []
        # Numbers of the calls of generate to come, and of the one that a thread is in.
        self._numbers, self._thread = count(1), threading.local()

    def begin(self) -> None:
        """A call of generate begins in this thread."""
        self._thread.call = next(self._numbers)

    def note(
        self,
        queries: Tensor,
        cache: Cache,
        selection: Selection,
        k: int,
        step: Step,
        choice: Choice,
        index_bytes: int,
        keep: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> None:
        """Judge what queries [B, Hq, Tq, D] selected, those that `keep` [B, 1, Tq] says."""
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
            softmax=softmax,
        )
        start = torch.zeros_like(stops[:1]) if step.start is None else step.start
        row = torch.arange(batch)[:, None, None]
        places = {
            "call": getattr(self._thread, "call", 0),
            "row": row,
            "sample": row,
            "layer": step.layer,
            "position": stops - 1 - start[:, None, None],
            "k": k,
            "index_bytes": index_bytes / batch,
        }
        judged = exact.judged(selection, k, self._cell["indexer"])
        self._parts += [rows(one, places, keep) for one in judged]

    def table(self) -> pa.Table:
        """All rows so far."""
        return table("attach", self._parts, **self._cell).combine_chunks()
