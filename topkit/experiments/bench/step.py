"""One layer's decoding step as `attach` drives it, beside dense attention, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.experiments.bench import formulas, timing
from topkit.experiments.bench.data import Cache, Recorded, recorded, stretched
from topkit.experiments.bench.decoding import Decoding, Layer
from topkit.experiments.bench.dense import measured_dense
from topkit.experiments.bench.rows import OURS, Row, quality
from topkit.experiments.bench.session import Case, Session, length_of
from topkit.experiments.decode.reader import Reader
from topkit.fidelity import Truth, UnitTruth, judge, judge_units, truth, unit_truth
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import parse

METRICS = ("recall", "mass", "mass_ratio")
# Bytes of one chunk of exact scores: larger ones are fewer launches.
MEMORY = 1 << 32
# Microseconds that a graph takes at least, at the speed of a copy.
GRAPH = 2000.0


@dataclass(frozen=True)
class Kind:
    """A recipe that is timed; `a_head`: each query head has a list of its own."""

    spec: str
    dtype: str
    a_head: bool = False


# "lightning" is given its index's queries, keys and gates, as an engine that has projected them gives.
KINDS: dict[str, Kind] = {
    "sign": Kind("shared(sign())", "sign"),
    "int4": Kind("shared(quantized(dtype='int4'))", "int4"),
    "int4 a head": Kind("quantized(dtype='int4')", "int4", a_head=True),
    "lightning": Kind("lightning(weights='given', dtype='fp8')", "lightning"),
}


@dataclass(frozen=True)
class Best:
    """The exact rows of a cache, and the best lists of its heads, KV groups and whole layers."""

    exact: Truth
    units: dict[int, UnitTruth]

    @classmethod
    def of(cls, cache: Cache, k: int) -> Best:
        tensors = (cache.queries, cache.keys)
        exact = truth(*tensors, None, k, scaling=cache.scaling, memory=MEMORY)
        counts = {cache.queries.shape[1], cache.keys.shape[1], 1}
        return cls(exact, {n: unit_truth(exact, *tensors, k, n, memory=MEMORY) for n in counts})


def step_cases(session: Session) -> Iterator[Case]:
    """Append, select, attend: each kind of index, at each length and batch."""
    of_model: list[Recorded] = []

    def once() -> Recorded:
        if not of_model:
            of_model.append(recorded(session))
        return of_model[0]

    for length in session.scale.lengths:
        yield length_of(length), lambda length=length: _at(session, length, once)


def _at(session: Session, length: int, of_model: Callable[[], Recorded]) -> Iterator[Row]:
    s = session.scale
    for batch in (1, s.batch):
        if (batch, length) not in session.dense:  # `dense` did not run
            yield from measured_dense(session, batch, length)
            session.release()
    # The tensors, and the same in the buffers of a cache, which have room behind them.
    session.require(2.5 * formulas.dense(s.batch, length, s.groups, s.dim).counted)
    cache = stretched(session, of_model(), length)
    best = Best.of(cache, s.k)
    for name, kind in KINDS.items():
        for batch in (1, s.batch):
            what = f"{name}, batch {batch} x {length_of(length)}"
            measure = partial(_measured, session, kind, cache, batch, best)
            yield session.attempt("step", what, OURS, measure)
            session.release()


def _measured(session: Session, kind: Kind, cache: Cache, batch: int, best: Best) -> Row:
    s, length = session.scale, cache.keys.shape[2]
    moved = formulas.step(
        kind.dtype, batch, length, s.groups, s.dim, s.k, s.heads if kind.a_head else None
    )
    several = s.batch // batch
    least = several * moved.ideal / session.copy / 1e3  # microseconds
    turns = max(1, math.ceil(GRAPH / least)) if session.cuda else 1
    decoding = decoding_of(session, kind, cache, batch, turns)
    worth = _worth(decoding, cache, best, s.k)
    calls = timing.streamed(decoding.step, session.device)
    return {
        "spans": [span / turns / several for span in calls],
        "moved": moved,
        "against": _fastest(session, batch, length),
        "dtype": kind.dtype,
        "batch": batch,
        "length": length,
        "k": s.k,
        **worth,
    }


def decoding_of(session: Session, kind: Kind, cache: Cache, batch: int, turns: int = 1) -> Decoding:
    """Rows of the cache as layers of so many rows each: a layer finds nothing of its own in L2."""
    recipe, k = parse(kind.spec), parse_budget(session.scale.k)
    reader = Reader(recipe, k, 0, None, session.backend)
    layers = []
    for first in range(0, session.scale.batch - batch + 1, batch):
        rows = slice(first, first + batch)
        layers.append(
            Layer(
                cache.queries[rows],
                cache.keys[rows],
                cache.values[rows],
                _index(session, kind, cache, rows),
                _inputs(kind, cache, rows, slice(-1, None)),
            )
        )
    return Decoding(layers, reader, cache.scaling, turns)


def _index(session: Session, kind: Kind, cache: Cache, rows: slice) -> Index:
    """The index of all keys but the newest."""
    inputs = _inputs(kind, cache, rows, slice(0, -1))
    how: dict[str, Any] = {"kv_heads": cache.keys.shape[1], "backend": session.backend}
    recipe = parse(kind.spec)
    step = Step(0, cache.scaling, inputs=inputs, **how).given_to(recipe)
    return recipe.build(cache.keys[rows, :, :-1], step)


def _inputs(kind: Kind, cache: Cache, rows: slice, tokens: slice) -> Mapping[str, Tensor]:
    if kind.dtype != "lightning":
        return {}
    return {
        "index_keys": cache.index_keys[rows, :, tokens],
        "index_queries": cache.index_queries[rows],
        "index_weights": cache.gates[rows],
    }


def _fastest(session: Session, batch: int, length: int) -> tuple[str, float] | None:
    """The dense backend to beat, of this run."""
    times = session.dense.get((batch, length), {})
    medians = {name: float(np.median(spans)) for name, spans in times.items()}
    return min(medians.items(), key=lambda one: one[1], default=None)


def _worth(decoding: Decoding, cache: Cache, best: Best, k: int) -> Row:
    """Fidelity of what the step chooses, the mean over rows and query heads.

    Against each head's own Top-k; `shared_mass_ratio` against the best list that the heads which
    share one could have been given.
    """
    count = len(decoding.layers)
    slots = torch.cat([decoding.select(number).indices for number in range(count)])
    if (slots.sort(-1).values.diff(dim=-1) == 0).any():
        raise RuntimeError("the selection holds a slot twice")
    tensors = (cache.queries, cache.keys)
    columns = judge(best.exact, *tensors, None, Selection(slots), k)
    means = {name: _mean(columns[name]) for name in METRICS}
    lists = best.units[slots.shape[1]]
    columns = judge_units(best.exact, lists, *tensors, Selection(slots), k)
    return quality({**means, "shared_mass_ratio": _mean(columns["mass_ratio"])})


def _mean(column: Tensor) -> float:
    return torch.nanmean(column.float()).item()
