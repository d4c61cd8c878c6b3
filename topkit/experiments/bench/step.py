"""One layer's decoding step as `attach` drives it, beside dense attention, and the fidelity of its selection."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from topkit.experiments.bench import formulas, timing
from topkit.experiments.bench.best import Best
from topkit.experiments.bench.data import Recorded, Tensors, random_weights, recorded, stretched
from topkit.experiments.bench.decoding import Decoding
from topkit.experiments.bench.dense import measured_dense
from topkit.experiments.bench.kept import kept_at
from topkit.experiments.bench.kinds import KINDS, Kind, decoding_of
from topkit.experiments.bench.rows import OURS, Row, quality
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session

# Microseconds that a graph takes at least, at the speed of a copy, and the layers that it holds at most.
GRAPH, MOST = 2000.0, 512


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
    if ("sign", length) not in session.kept:  # `kept` did not run
        yield from _kept(session, length)
        session.release()
    # The tensors, and the same in the buffers of a cache, which have room behind them.
    session.require(2.5 * formulas.dense(s.batch, length, s.groups, s.dim).counted)
    tensors = stretched(session, of_model(), length)
    best = Best.of(tensors.queries, tensors.keys, s.k, tensors.scaling)
    for name, kind in KINDS.items():
        for batch in (1, s.batch):
            what = f"{name}, batch {batch} x {length_of(length)}"
            real = session.kept.get((name, length), {})
            measure = partial(_measured, session, kind, tensors, batch, best, real)
            yield session.attempt("step", what, OURS, measure)
            gc.collect()  # layers, graph and cache refer to each other
            session.release()


def _kept(session: Session, length: int) -> Iterator[Row]:
    """What selections keep on SmolLM2's tensors; where that fails, steps are timed all the same."""
    try:
        yield from kept_at(session, length, session.scale.k)
    except Exception as error:
        yield session.failed("kept", length_of(length), OURS, error)


def _measured(
    session: Session, kind: Kind, tensors: Tensors, batch: int, best: Best, real: Row
) -> Row:
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
            worth = quality({**_worth(decoding, tensors, best, s.k), **real})
        calls = timing.streamed(decoding.step, session.device)
    spans = [span / turns / layers for span in calls]
    against = _fastest(session, batch, length)
    return {"spans": spans, "moved": moved, "against": against, **shape, **worth}


def _fastest(session: Session, batch: int, length: int) -> tuple[str, float] | None:
    """The dense backend to beat, of this run."""
    times = session.dense.get((batch, length), {})
    medians = {name: float(np.median(spans)) for name, spans in times.items()}
    return min(medians.items(), key=lambda one: one[1], default=None)


def _worth(decoding: Decoding, tensors: Tensors, best: Best, k: int) -> dict[str, float]:
    """Fidelity of what the step chooses on the bundled model's tensors."""
    count = len(decoding.layers)
    slots = torch.cat([decoding.select(number).indices for number in range(count)])
    return best.fidelity(tensors.queries, tensors.keys, slots, k)
