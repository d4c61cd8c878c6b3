"""Fidelity of the selections that answers were given by: observed where they are made, as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from topkit.experiments.decode.driver import Choice
from topkit.experiments.evaluate.streams import Stream
from topkit.fidelity import METRICS, judge, judge_units, truth, unit_truth
from topkit.indexers.base import Cache, Selection

COSTS = ("keys_scored", "bytes_read")
# Of one query or the mean over an answer's; trivial ones are left out of means.
NUMBERS = ("visible", *METRICS, *COSTS)
_WORDS = ("task", "sparse_from", "indexer", "budget", "reference", "level")
# A sample is a haystack: `sample` as in all tables of fidelity, `haystack` as in those of accuracy.
_COUNTS = (
    "length",
    "sample",
    "haystack",
    "question",
    "layer",
    "head",
    "position",
    "positions",
    "k",
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _WORDS),
        *((name, pa.int64()) for name in _COUNTS),
        *((name, pa.float64()) for name in (*NUMBERS, "index_bytes")),
        ("trivial", pa.bool_()),
    ]
)


@dataclass
class Observer:
    """Judges every selection of one stream, against the exact rows of the queries that made it."""

    stream: Stream
    scaling: Mapping[int, float]
    # (layer, level) -> columns [B, H, Tq] of each piece of queries.
    found: dict[tuple[int, str], list[dict[str, Tensor]]] = field(default_factory=dict)

    def __call__(
        self,
        layer: int,
        queries: Tensor,
        cache: Cache,
        selection: Selection,
        choice: Choice,
    ) -> None:
        k, stop, scaling = self.stream.k, choice.stops[None], self.scaling[layer]
        keys, values = cache.keys, cache.values
        assert k is not None
        exact = truth(queries, keys, values, k, scaling=scaling, stop=stop, layer=layer)
        columns = judge(exact, queries, keys, values, selection, k)
        self._keep(layer, "head", columns, selection)
        units = selection.indices.shape[1]
        if units < queries.shape[1]:
            shared = unit_truth(exact, queries, keys, k, units, stop=stop)
            columns = judge_units(exact, shared, queries, keys, selection, k)
            self._keep(layer, "layer" if units == 1 else "group", columns, selection)

    def _keep(
        self, layer: int, level: str, columns: dict[str, Tensor], selection: Selection
    ) -> None:
        shape = columns["recall"].shape
        device = columns["recall"].device
        for name in COSTS:
            cost = torch.as_tensor(getattr(selection, name), device=device)
            # A number, or one a query [B or 1, Tq]: the same for all heads.
            columns[name] = (cost if cost.ndim == 0 else cost[:, None]).expand(shape)
        self.found.setdefault((layer, level), []).append(columns)

    def tables(
        self, questions: Sequence[int], real: Tensor, first: int, each: bool
    ) -> list[pa.Table]:
        """What was observed of the questions in the stream's rows, a table a level.

        real [B, Tq]: which of the queries are an answer's; `first` is the position of the first;
        `each` keeps every query, not the means over them.
        """
        answered = real.cpu().numpy()
        return [
            self._table(level, questions, answered, first, each)
            for level in sorted({level for _, level in self.found})
        ]

    def _table(
        self, level: str, questions: Sequence[int], real: np.ndarray, first: int, each: bool
    ) -> pa.Table:
        layers = [layer for layer, at in self.found if at == level]
        columns = {}
        for name in (*NUMBERS, "trivial"):
            pieces = [[piece[name] for piece in self.found[n, level]] for n in layers]
            stacked = torch.stack([torch.cat(parts, -1) for parts in pieces], 1)
            columns[name] = stacked.double().cpu().numpy()  # [B, layers, H, Tq]
        count = columns["recall"].shape[2]
        held = [self.stream.indices[n].nbytes / self.stream.rows for n in layers]
        places = {
            "question": np.array(questions)[:, None, None, None],
            "layer": np.array(layers)[:, None, None],
            "head": np.arange(count)[:, None],
            "index_bytes": np.array(held)[:, None, None],
            "position": first + np.arange(real.shape[1]),
        }
        shape = columns["recall"].shape
        wide = {n: np.broadcast_to(x, shape) for n, x in (columns | places).items()}
        kept = np.broadcast_to(real[:, None, None], shape)
        rows = _each(wide, kept) if each else _means(wide, kept)
        words = {"level": level, "reference": level, **self.stream.cell.columns}
        size = len(rows["head"])
        return pa.table(
            {n: pa.array(x, SCHEMA.field(n).type, from_pandas=True) for n, x in rows.items()}
            | {n: [word] * size for n, word in words.items()}
            | {"k": np.full(size, self.stream.k)}
        )


def _each(columns: Mapping[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    """A row for each query that is kept; all arrays [B, layers, H, Tq]."""
    rows = {name: values[kept] for name, values in columns.items()}
    rows["trivial"] = rows["trivial"] > 0
    return rows | {"positions": np.ones(len(rows["head"]))}


def _means(columns: Mapping[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    """A row for each question, layer and head: means over what is kept and not trivial."""
    trivial = (columns["trivial"] > 0) | ~kept
    all_trivial = np.all(trivial, axis=-1)
    counted = kept & (~trivial | all_trivial[..., None])
    rows = {}
    for name, values in columns.items():
        there = counted & ~np.isnan(values)
        number = there.sum(-1)
        total = np.where(there, values, 0.0).sum(-1)
        empty = np.full(total.shape, np.nan)
        rows[name] = np.divide(total, number, out=empty, where=number > 0).reshape(-1)
    rows["trivial"] = all_trivial.reshape(-1)
    rows["positions"] = kept.sum(-1).reshape(-1)
    rows["position"] = np.full(rows["head"].shape, np.nan)
    return rows


def fidelity_table(parts: Sequence[pa.Table], constants: Mapping[str, str | int]) -> pa.Table:
    """The rows of all parts, with the columns that are the same in all."""
    table = pa.concat_tables(parts, promote_options="permissive")
    for name, value in constants.items():
        table = table.append_column(name, pa.array([value] * len(table)))
    return table.select(SCHEMA.names).cast(SCHEMA)
