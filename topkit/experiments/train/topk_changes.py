"""What training by Top-k attention changes: scores beside dense training, the sink, the heads that read the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from topkit.experiments.study.stats import Array, Interval, mean
from topkit.experiments.train.arms import BEFORE, DENSE
from topkit.experiments.train.found import Gaps, Start, gaps
from topkit.experiments.train.head_measures import READING, SINK

# Heads that are called reading: those with the most weight on the answer's own key, before training.
READERS = 8


@dataclass(frozen=True)
class Beside:
    """A training at a ratio beside the dense one, on a task: both decoded at each k of the sweep, means over seeds.

    at: the place of the ratio among the cells, or of the smallest k where the sweep lacks it.
    """

    title: str
    ratio: str
    cells: Sequence[str]
    at: int
    ours: Array
    dense: Array
    tested: Gaps

    @property
    def better(self) -> list[str]:
        """The k at which it is shown to score more than dense training."""
        return self._shown(1)

    @property
    def worse(self) -> list[str]:
        return self._shown(-1)

    def _shown(self, sign: int) -> list[str]:
        gap, shown = self.tested.gap.value, self.tested.shown
        sparse = [n for n, cell in enumerate(self.cells) if cell != "dense"]
        return [self.cells[n] for n in sparse if shown[n] and sign * gap[n] > 0]

    @property
    def word(self) -> str:
        """The verdict at the ratio."""
        cell = self.cells[self.at]
        better, worse = cell in self.better, cell in self.worse
        return "better" if better else "worse" if worse else "not shown to differ"

    @property
    def full(self) -> Interval:
        """The difference where both are decoded by full attention."""
        return self.tested.gap[self.cells.index("dense")]


@dataclass(frozen=True)
class Moved:
    """What a training does to the weight on slot 0, and to the heads that read the answer most.

    before, after, change: of the weight on slot 0; readers: how many heads read the answer most before, 0 where no head
    is seen to; common: how many of them still do, mean over seeds; weights: theirs on the answer's key, before and after.
    """

    title: str
    arm: str
    before: float
    after: float
    change: Interval
    readers: int = 0
    common: float = float("nan")
    weights: tuple[float, float] = (float("nan"), float("nan"))


def besides(start: Start) -> list[Beside]:
    """Each task's trainings at a ratio beside its dense one."""
    made: list[Beside] = []
    for task, title in enumerate(start.titles("curves")):
        for ratio in start.ratios:
            cells, ours, questions = start.curve(ratio, task)
            _, dense, _ = start.curve(DENSE, task)
            sparse = [n for n, cell in enumerate(cells) if cell != "dense"]
            at = cells.index(ratio) if ratio in cells else sparse[0]
            scores = score(ours, questions), score(dense, questions)
            made.append(Beside(title, ratio, cells, at, *scores, gaps(ours, dense, questions)))
    return made


def moves(start: Start) -> list[Moved]:
    """What each training moved, by each task whose heads were measured."""
    titles = enumerate(start.titles("heads"))
    return [_moved(start, task, title, arm) for task, title in titles for arm in start.trained]


def _moved(start: Start, task: int, title: str, arm: str) -> Moved:
    before, after = (start.heads(a, task, SINK).mean((1, 2, 3)) for a in (BEFORE, arm))
    change = mean((after - before[0])[None], np.ones(len(after)))[0]
    sink = Moved(title, arm, float(before[0]), float(after.mean()), change)
    weights = [start.heads(a, task, READING) for a in (BEFORE, arm)]
    if np.isnan(weights[0]).all():
        return sink
    read = [np.nanmean(own, axis=1) for own in weights]
    first = _readers(read[0][0])
    common = float(np.mean([len(first & _readers(one)) for one in read[1]]))
    old, new = (float(one.flatten()[sorted(first)].mean()) for one in (read[0][0], read[1].mean(0)))
    return replace(sink, readers=len(first), common=common, weights=(old, new))


def _readers(weights: Array) -> set[int]:
    order = np.argsort(-np.nan_to_num(weights.flatten(), nan=-1.0), kind="stable")
    return set(order[: min(READERS, len(order))].tolist())


def score(rates: Array, questions: Array) -> Array:
    """The accuracy of each cell, mean over seeds, of rates [seeds, cells, haystacks]."""
    return (rates @ questions / questions.sum()).mean(0)
