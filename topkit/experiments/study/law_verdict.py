"""Whether a registered law holds of a model: its error on each family, its calibration, and the verdict.

Pure functions of arrays: of C cells on tasks, predicted and scored [C], noise [C], the standard error of their
difference over haystacks; families [C], a name each.
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

from topkit.experiments.study import stats
from topkit.experiments.study.law import Law
from topkit.experiments.study.ordering import left_out
from topkit.experiments.study.stats import Array, Interval

HELD, REFUTED, UNDECIDED = "held", "refuted", "undecided"
_DRAWS = 2000


@dataclass(frozen=True)
class Tested:
    """How far off predictions are, each family counting once, and the line of scores over predictions.

    by_chance: the mean error that sampling haystacks alone would leave; slope is 1 and intercept 0 of a
    prediction that is calibrated.
    """

    error: Interval
    slope: Interval
    intercept: Interval
    by_chance: float = float("nan")


def assessed(
    predicted: Array,
    scored: Array,
    families: Sequence[str],
    noise: Array | None = None,
    seed: int = 0,
) -> Tested:
    """Student's interval of the error over families; a bootstrap that draws families for the line.

    The line goes through the cells by least squares, each family weighing the same; percentiles are widened by
    Student's quantile over the normal's.
    """
    of, count = numbered(families)
    errors = _by_family(np.abs(predicted - scored), of)
    chance = float("nan")
    if noise is not None:
        # The mean size of a normal number is so much of its standard deviation.
        chance = float(_by_family(noise, of).mean() * np.sqrt(2 / np.pi))
    weights = np.vstack([np.ones(count), _drawn(count, seed)])[:, of] / np.bincount(of)[of]
    slope, intercept = _lines(predicted, scored, weights)
    return Tested(
        stats.mean(errors[None], np.ones(count))[0],
        _percentiles(slope, count),
        _percentiles(intercept, count),
        chance,
    )


def rival(x: Array, scored: Array, families: Sequence[str]) -> Array:
    """What a metric predicts of each cell by a curve through the other families, whose scores it is fitted to."""
    return left_out(x, scored, numbered(families)[0])


def verdict(
    law: Law, found: Tested, families: int, haystacks: int, left: Sequence[str] = ()
) -> tuple[str, str]:
    """In a word, and why: refuted above the registered error, undecided before what was planned was run.

    left: the model's registered tasks that were not run.
    """
    error = float(found.error.value)
    if left:
        return UNDECIDED, f"registered tasks were not run: {', '.join(left)}"
    if haystacks < law.haystacks:
        return UNDECIDED, f"{haystacks} of {law.haystacks} planned haystacks were run"
    if families < law.families:
        return UNDECIDED, f"{families} families were run, fewer than the {law.families} registered"
    word = REFUTED if error > law.error else HELD
    return word, f"mean error {error:.3f}, registered as refuted above {law.error:g}"


def numbered(families: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """The number of each cell's family, in the order of first cells, and how many there are."""
    names = {name: n for n, name in enumerate(dict.fromkeys(families))}
    return np.array([names[family] for family in families]), len(names)


def _by_family(values: Array, of: NDArray[np.int64]) -> Array:
    return np.bincount(of, values) / np.bincount(of)


def _drawn(count: int, seed: int) -> Array:
    """How often each family is drawn, a draw a row."""
    picked = np.random.default_rng(seed).integers(count, size=(_DRAWS, count))
    return np.stack([np.bincount(row, minlength=count) for row in picked]).astype(float)


def _lines(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Slope and intercept of the weighted line of each row; NaN where x is constant."""
    share = weights / weights.sum(1, keepdims=True)
    mean_x, mean_y = share @ x, share @ y
    spread = share @ x**2 - mean_x**2
    together = share @ (x * y) - mean_x * mean_y
    slope = np.divide(together, spread, out=np.full(len(share), np.nan), where=spread > 1e-12)
    return slope, mean_y - slope * mean_x


def _percentiles(estimates: Array, units: int, level: float = 0.95) -> Interval:
    """The first is the estimate, the others its resamples, of which some may be none."""
    value, tail = estimates[0], (1 + level) / 2
    known = estimates[1:][np.isfinite(estimates[1:])]
    if not known.size or units < 3:
        return Interval(value, np.array(np.nan), np.array(np.nan))
    low, high = np.quantile(known, [1 - tail, tail])
    wider = scipy_stats.t.ppf(tail, units - 2) / scipy_stats.norm.ppf(tail)
    return Interval(
        value, value + wider * min(low - value, 0), value + wider * max(high - value, 0)
    )
