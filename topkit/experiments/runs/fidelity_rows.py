"""Fidelity rows of the selections that a model made while it decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from topkit.fidelity import METRICS, judge, judge_units, truth, unit_truth
from topkit.indexers.base import Cache, Indexer, Selection, Step
from topkit.indexers.budget import Budget

_COUNTS = ("call", "sample", "layer", "head", "position", "k", "visible")
_WORDS = ("indexer", "budget", "reference", "level")
_NUMBERS = ("index_bytes", "keys_scored", "bytes_read", *METRICS)
SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in _COUNTS),
        *((name, pa.string()) for name in _WORDS),
        *((name, pa.float64()) for name in _NUMBERS),
        ("trivial", pa.bool_()),
    ]
)


class Judged:
    """Collects rows: one a call of generate, row of the batch (sample), layer, head and position."""

    def __init__(self, indexer: Indexer, budget: Budget) -> None:
        self._words = {"indexer": repr(indexer), "budget": str(budget)}
        self._parts: list[dict[str, Any]] = []
        # Calls of generate so far.
        self.call = 0

    def note(
        self,
        queries: Tensor,
        cache: Cache,
        selection: Selection,
        k: int,
        step: Step,
        stops: Tensor,
        index_bytes: int,
    ) -> None:
        """Judge the selection of queries [B, Hq, Tq, D] that see the slots before stops [Tq]."""
        keys, values, layer = cache.keys, cache.values, step.layer
        seen: dict[str, Any] = {"start": step.start, "stop": stops[None]}
        exact = truth(queries, keys, values, k, scaling=step.scaling, layer=layer, **seen)
        first = torch.zeros_like(stops[:1]) if step.start is None else step.start
        places = {
            "call": self.call,
            "layer": layer,
            "k": k,
            "index_bytes": index_bytes / queries.shape[0],
            "position": stops - 1 - first[:, None, None],
            "keys_scored": _cost(selection.keys_scored),
            "bytes_read": _cost(selection.bytes_read),
        }
        self._keep("head", places, judge(exact, queries, keys, values, selection, k))
        units = selection.indices.shape[1]
        if units < queries.shape[1]:
            best = unit_truth(exact, queries, keys, k, units, **seen)
            columns = judge_units(exact, best, queries, keys, selection, k)
            self._keep("layer" if units == 1 else "group", places, columns)

    def _keep(self, level: str, places: dict[str, Any], columns: dict[str, Tensor]) -> None:
        shape = columns["recall"].shape
        wide = {name: torch.as_tensor(x).cpu().expand(shape) for name, x in places.items()}
        wide |= {name: x.cpu() for name, x in columns.items()}
        wide["sample"] = torch.arange(shape[0])[:, None, None].expand(shape)
        wide["head"] = torch.arange(shape[1])[:, None].expand(shape)
        real = wide["visible"] > 0
        part: dict[str, Any] = {name: x[real].numpy() for name, x in wide.items()}
        self._parts.append({**part, "level": level})

    def table(self) -> pa.Table:
        """All rows so far; NaN, for what has no meaning, is null."""
        parts = self._parts
        columns: dict[str, Any] = {}
        for name in SCHEMA.names:
            if name in self._words:
                continue
            key = "level" if name == "reference" else name
            if key == "level":
                column = [p["level"] for p in parts for _ in range(len(p["head"]))]
            else:
                column = np.concatenate([p[key] for p in parts]) if parts else []
            columns[name] = pa.array(column, from_pandas=True).cast(SCHEMA.field(name).type)
        count = len(columns["head"])
        columns |= {
            name: pa.array([word] * count, pa.string()) for name, word in self._words.items()
        }
        return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def _cost(cost: Tensor | float) -> Tensor:
    """A number, or one a query [B or 1, Tq], to stand for all heads."""
    cost = torch.as_tensor(cost)
    return cost if cost.ndim == 0 else cost[:, None]
