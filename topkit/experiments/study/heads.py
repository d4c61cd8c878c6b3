"""Which heads must be right: a poor indexer, and the same with exact selection in one KV group at a time.

Pure functions of curves. Haystacks are the units: a group is tested on those whose questions it answers better
and worse than the poor indexer alone (McNemar's exact test; with several questions a haystack, the sign test of
their means), with Holm's correction over all groups of an indexer.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (scipy comes without types.)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.ranks import holm
from topkit.experiments.study.stats import Array, Interval, difference
from topkit.indexers import exact_group

# Of studies in which no group matters, the share that says otherwise of an indexer.
ALPHA = 0.05
Group = tuple[int, int]


@dataclass(frozen=True)
class Mended:
    """A poor indexer at a budget, and what exact selection in each of G groups changes.

    score, exact, full: accuracies of it, of exact Top-k and of full attention, NaN where that did not run; gain:
    differences [G] with 95 % intervals each; better, worse: haystacks [G]; p: McNemar's, uncorrected [G];
    shown: which differ, by Holm over all G; weight: the dense weight of the answer's key, the mean over a group's
    heads [G], NaN where no key is known.
    """

    base: Cell
    groups: tuple[Group, ...]
    score: float
    exact: float
    full: float
    gain: Interval
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    p: Array
    shown: NDArray[np.bool_]
    weight: Array

    @property
    def helping(self) -> list[int]:
        """The groups that are shown to raise accuracy, the largest gain first."""
        places = [int(n) for n in np.flatnonzero(self.shown & (self.gain.value > 0))]
        return sorted(places, key=lambda n: (-self.gain.value[n], self.groups[n]))

    @property
    def reading(self) -> list[int]:
        """All groups, those that weigh the answer's key most first; none where no key is known."""
        if np.isnan(self.weight).all():
            return []
        order = np.argsort(-np.nan_to_num(self.weight, nan=-1.0), kind="stable")
        return [int(n) for n in order]

    def grid(self, values: Array) -> Array:
        """A value of each group as a map [layers, groups], NaN where there is none."""
        shape = [1 + max(axis) for axis in zip(*self.groups, strict=True)]
        drawn = np.full(shape, np.nan)
        for place, value in zip(self.groups, values, strict=True):
            drawn[place] = value
        return drawn


def mended(curve: Curve) -> list[Mended]:
    """What a curve says of each indexer that was mended in some group."""
    places: dict[Cell, dict[Group, int]] = {}
    for place, cell in enumerate(curve.cells):
        one = cell.indexer
        if isinstance(one, exact_group):
            places.setdefault(Cell(one.base, cell.budget), {})[one.layer, one.group] = place
    there = {base: groups for base, groups in places.items() if base in curve.cells}
    return [_mended(curve, base, groups) for base, groups in there.items()]


def mcnemar(better: NDArray[np.int64], worse: NDArray[np.int64]) -> Array:
    """McNemar's exact test of pairs that differ [G]: two-sided, 1 where none does.

    Source: McNemar, Psychometrika 12 (1947), by the binomial distribution of the pairs that differ.
    """
    pairs = zip(better.tolist(), worse.tolist(), strict=True)
    p = [scipy_stats.binomtest(a, a + b).pvalue if a + b else 1.0 for a, b in pairs]
    return np.array(p, dtype=float)


def _mended(curve: Curve, base: Cell, groups: dict[Group, int]) -> Mended:
    at, names = curve.cells.index(base), sorted(groups)
    own = [groups[name] for name in names]
    apart = curve.rates[own] - curve.rates[at]
    better, worse = (apart > 1e-9).sum(1), (apart < -1e-9).sum(1)
    p = mcnemar(better, worse)
    gain = difference(curve.rates, curve.questions, at)
    accuracies = curve.rates @ curve.questions / curve.questions.sum()
    exact, full = curve.place(EXACT, base.budget), curve.place(None)
    return Mended(
        base,
        tuple(names),
        float(accuracies[at]),
        float("nan") if exact is None else float(accuracies[exact]),
        float("nan") if full is None else float(accuracies[full]),
        Interval(gain.value[own], gain.low[own], gain.high[own]),
        better,
        worse,
        p,
        holm(p, ALPHA),
        _weights(curve, base, names),
    )


def _weights(curve: Curve, base: Cell, groups: Sequence[Group]) -> Array:
    """The dense weight of the answer's key in each group, of exact Top-k's queries, or else of base's."""
    by_cell = curve.weights
    grid = by_cell.get(Cell(EXACT, base.budget), by_cell.get(base))
    if grid is None:
        return np.full(len(groups), np.nan)
    each = max(1, grid.shape[1] // (1 + max(group for _, group in groups)))
    return np.array([
        np.nan if layer >= len(grid) else np.mean(grid[layer, group * each : (group + 1) * each])
        for layer, group in groups
    ])  # fmt: skip
