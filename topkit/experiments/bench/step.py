"""One whole decoding step beside dense attention, and what its very selection is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from topkit.experiments.bench import formulas
from topkit.experiments.bench.attention import measured_dense
from topkit.experiments.bench.data import Cache, Recorded, recorded, stretched
from topkit.experiments.bench.kernels import OURS
from topkit.experiments.bench.packed import Asked, Packed, encoded, of_lightning
from topkit.experiments.bench.rows import Row, quality
from topkit.experiments.bench.session import Case, Session, length_of
from topkit.fidelity import Truth, UnitTruth, judge, judge_units, truth, unit_truth
from topkit.indexers.base import Selection
from topkit.kernels.gather_attention import gather_attention

# How keys are encoded, and how the scores of a group's heads become one list's; None: a list each.
KINDS: dict[str, tuple[str, str | None]] = {
    "sign": ("sign", "mean"),
    "int4": ("int4", "mean"),
    "int4 a head": ("int4", None),
    "lightning": ("lightning", "mean"),
}
METRICS = ("recall", "mass", "mass_ratio")
# Bytes of one chunk of exact scores: larger ones are fewer launches.
MEMORY = 1 << 32


@dataclass(frozen=True)
class Decoding:
    """Rows of caches, and an index over each: a step is asked of some of them."""

    cache: Cache
    index: Packed
    k: int

    def step(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The newest token's key appended, the best keys chosen and attended to: (output, slots)."""
        cache, index = self.cache, self.index.rows(rows)
        asked = Asked(cache.queries[rows])
        if index.dtype == "lightning":
            asked = of_lightning(cache.index_queries[rows], cache.gates[rows], index.backend)
        keys = cache.index_keys if index.dtype == "lightning" else cache.keys
        index.append(keys[rows, :, -1:], keys.shape[2] - 1)
        slots = index.select(asked, self.k)
        output = gather_attention(
            cache.queries[rows], cache.keys[rows], cache.values[rows], slots,
            scaling=cache.scaling, backend=index.backend,
        )  # fmt: skip
        return output, slots


@dataclass(frozen=True)
class Best:
    """The exact rows of a cache, and the best lists of its heads, KV groups and whole layers."""

    exact: Truth
    units: dict[int, UnitTruth]

    @classmethod
    def of(cls, cache: Cache, k: int) -> Best:
        asked = (cache.queries, cache.keys)
        exact = truth(*asked, None, k, scaling=cache.scaling, memory=MEMORY)
        counts = {cache.queries.shape[1], cache.keys.shape[1], 1}
        return cls(exact, {n: unit_truth(exact, *asked, k, n, memory=MEMORY) for n in counts})


def step_cases(session: Session) -> Iterator[Case]:
    """Append, select, attend: each kind of index, at each length and batch."""
    found: list[Recorded] = []

    def of_model() -> Recorded:
        if not found:
            found.append(recorded(session))
        return found[0]

    for length in session.scale.lengths:
        yield length_of(length), lambda length=length: _at(session, length, of_model)


def _at(session: Session, length: int, of_model: Callable[[], Recorded]) -> Iterator[Row]:
    s = session.scale
    for batch in (1, s.batch):
        if (batch, length) not in session.dense:  # not asked for by itself
            yield from measured_dense(session, batch, length)
            session.release()
    session.require(1.5 * formulas.dense(s.batch, length, s.groups, s.dim).counted)
    cache = stretched(session, of_model(), length)
    best = Best.of(cache, s.k)
    for kind, (dtype, pool) in KINDS.items():
        keys = cache.index_keys if dtype == "lightning" else cache.keys
        index = replace(encoded(session, dtype, keys), pool=pool)
        decoding = Decoding(cache, index, s.k)
        for batch in (1, s.batch):
            what = f"{kind}, batch {batch} x {length_of(length)}"
            measure = partial(_measured, session, decoding, batch, best)
            yield session.attempt("step", what, OURS, measure)


def _measured(session: Session, decoding: Decoding, batch: int, best: Best) -> Row:
    s, dtype, length = session.scale, decoding.index.dtype, decoding.cache.keys.shape[2]
    heads = s.heads if decoding.index.pool is None else None
    # Rows in turn: batch 1 finds nothing of the layer before in L2.
    rows = [slice(n, n + batch) for n in range(0, s.batch - batch + 1, batch)]
    spans = session.timed([partial(decoding.step, r) for r in rows])
    return {
        "spans": spans,
        "moved": formulas.step(dtype, batch, length, s.groups, s.dim, s.k, heads),
        "against": _fastest(session, batch, length),
        "dtype": dtype,
        "batch": batch,
        "length": length,
        "k": s.k,
        **_worth(decoding, best),
    }


def _fastest(session: Session, batch: int, length: int) -> tuple[str, float] | None:
    """The dense backend to beat, of this run."""
    times = session.dense.get((batch, length), {})
    medians = {name: float(np.median(spans)) for name, spans in times.items()}
    return min(medians.items(), key=lambda one: one[1], default=None)


def _worth(decoding: Decoding, best: Best) -> Row:
    """Fidelity of what the step chooses, the mean over rows and query heads.

    Against each head's own Top-k; `shared_mass_ratio` against the best list that the heads which
    share one could have been given.
    """
    cache, (_, slots) = decoding.cache, decoding.step(slice(None))
    if (slots.sort(-1).values.diff(dim=-1) == 0).any():
        raise RuntimeError("the selection holds a slot twice")
    asked = (cache.queries, cache.keys)
    columns = judge(best.exact, *asked, None, Selection(slots), decoding.k)
    found = {name: _mean(columns[name]) for name in METRICS}
    of_lists = best.units[slots.shape[1]]
    columns = judge_units(best.exact, of_lists, *asked, Selection(slots), decoding.k)
    return quality({**found, "shared_mass_ratio": _mean(columns["mass_ratio"])})


def _mean(column: Tensor) -> float:
    return torch.nanmean(column.float()).item()
