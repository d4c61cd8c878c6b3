"""One layer's decoding step as `attach` drives it, beside dense attention, and the fidelity of its selection."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from topkit.experiments.bench import formulas, timing
from topkit.experiments.bench.data import Recorded, Tensors, random_weights, recorded, stretched
from topkit.experiments.bench.decoding import Decoding
from topkit.experiments.bench.dense import measured_dense
from topkit.experiments.bench.kinds import KINDS, Kind, decoding_of
from topkit.experiments.bench.rows import OURS, Row, quality
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.fidelity import Truth, UnitTruth, judge, judge_units, truth, unit_truth
from topkit.indexers.base import Selection

METRICS = ("recall", "mass", "mass_ratio")
# Bytes of one chunk of exact scores: larger ones are fewer launches.
MEMORY = 1 << 32
# Microseconds that a graph takes at least, at the speed of a copy, and the layers that it holds at most.
GRAPH, MOST = 2000.0, 512


@dataclass(frozen=True)
class Best:
    """The exact rows of a cache, and the best lists of its heads, KV groups and whole layers."""

    exact: Truth
    units: dict[int, UnitTruth]

    @classmethod
    def of(cls, tensors: Tensors, k: int) -> Best:
        own = (tensors.queries, tensors.keys)
        exact = truth(*own, None, k, scaling=tensors.scaling, memory=MEMORY)
        counts = {tensors.queries.shape[1], tensors.keys.shape[1], 1}
        return cls(exact, {n: unit_truth(exact, *own, k, n, memory=MEMORY) for n in counts})


def step_cases(session: Session) -> Iterator[Case]:
    """Append, select, attend: each kind of index, at each length and batch."""
    of_model = cache(lambda: recorded(session))
    for length in session.scale.lengths:
        yield length_of(length), lambda length=length: _at(session, length, of_model)


def _at(session: Session, length: int, of_model: Callable[[], Recorded]) -> Iterator[Row]:
    s = session.scale
    for batch in (1, s.batch):
        if (batch, length) not in session.dense:  # `dense` did not run
            yield from measured_dense(session, batch, length)
            session.release()
    # The tensors, and the same in the buffers of a cache, which have room behind them.
    session.require(2.5 * formulas.dense(s.batch, length, s.groups, s.dim).counted)
    tensors = stretched(session, of_model(), length)
    best = Best.of(tensors, s.k)
    for name, kind in KINDS.items():
        for batch in (1, s.batch):
            what = f"{name}, batch {batch} x {length_of(length)}"
            measure = partial(_measured, session, kind, tensors, batch, best)
            yield session.attempt("step", what, OURS, measure)
            gc.collect()  # layers, graph and cache refer to each other
            session.release()


def _measured(session: Session, kind: Kind, tensors: Tensors, batch: int, best: Best) -> Row:
    s, length = session.scale, tensors.keys.shape[2]
    lists = s.heads if kind.a_head else None
    moved = formulas.step(kind.dtype, batch, length, s.groups, s.dim, s.k, lists)
    shape: Row = {"dtype": kind.dtype, "batch": batch, "length": length, "k": s.k}
    layers = s.batch // batch
    least = layers * moved.ideal / session.copy / 1e3  # microseconds
    turns = min(math.ceil(GRAPH / least), MOST // layers) if session.cuda else 1
    with TemporaryDirectory() as folder:
        weights = random_weights(session, Path(folder), layers) if kind.projected else None
        decoding = decoding_of(session, kind, tensors, batch, turns, weights)
        if kind.projected:
            moved += formulas.projections(s.hidden, s.index_heads, s.dim)
            worth: Row = {"note": "with its projections, of random weights"}
        else:
            worth = _worth(decoding, tensors, best, s.k)
        calls = timing.streamed(decoding.step, session.device)
    spans = [span / turns / layers for span in calls]
    against = _fastest(session, batch, length)
    return {"spans": spans, "moved": moved, "against": against, **shape, **worth}


def _fastest(session: Session, batch: int, length: int) -> tuple[str, float] | None:
    """The dense backend to beat, of this run."""
    times = session.dense.get((batch, length), {})
    medians = {name: float(np.median(spans)) for name, spans in times.items()}
    return min(medians.items(), key=lambda one: one[1], default=None)


def _worth(decoding: Decoding, tensors: Tensors, best: Best, k: int) -> Row:
    """Fidelity of what the step chooses, the mean over rows and query heads.

    Against each head's own Top-k; `shared_mass_ratio` against the best list for the heads that
    share one.
    """
    count = len(decoding.layers)
    slots = torch.cat([decoding.select(number).indices for number in range(count)])
    if (slots.sort(-1).values.diff(dim=-1) == 0).any():
        raise RuntimeError("the selection holds a slot twice")
    own = (tensors.queries, tensors.keys)
    columns = judge(best.exact, *own, None, Selection(slots), k)
    means = {name: _mean(columns[name]) for name in METRICS}
    lists = best.units[slots.shape[1]]
    columns = judge_units(best.exact, lists, *own, Selection(slots), k)
    return quality({**means, "shared_mass_ratio": _mean(columns["mass_ratio"])})


def _mean(column: Tensor) -> float:
    return torch.nanmean(column.float()).item()
