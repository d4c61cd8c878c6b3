"""A curve's intervals, each computed once."""

# pyright: strict
from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from topkit.experiments.study import stats
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.sentences import judged, said
from topkit.experiments.study.stats import Interval
from topkit.indexers.budget import Budget

MARGIN = 0.05


class Intervals:
    """Of each cell: its accuracy and losses, and what they differ by from full attention and exact Top-k."""

    def __init__(self, curve: Curve, margin: float = MARGIN) -> None:
        self.curve, self.margin = curve, margin
        self._against: dict[int, Interval] = {}

    @cached_property
    def accuracy(self) -> Interval:
        return stats.accuracy(self.curve.rates, self.curve.trials)

    @cached_property
    def losses(self) -> dict[str, Interval]:
        """NLL of the true answers, and KL to full attention, in nats a token."""
        questions, losses = self.curve.questions, self.curve.losses
        intervals = {name: stats.mean(x, questions) for name, x in losses.items()}
        # Neither can fall below 0, whatever few haystacks leave open.
        return {name: replace(x, low=np.maximum(x.low, 0)) for name, x in intervals.items()}

    @cached_property
    def nll_to_dense(self) -> Interval | None:
        """Paired differences of NLL to full attention."""
        dense, nll = self.curve.place(None), self.curve.losses["nll"]
        return None if dense is None else stats.mean(nll - nll[dense], self.curve.questions)

    @cached_property
    def to_dense(self) -> Interval | None:
        """Paired differences to full attention."""
        dense = self.curve.place(None)
        return None if dense is None else self.against(dense)

    @cached_property
    def apart(self) -> dict[str, Interval]:
        """Accuracy where the words were the reference model's own, and where it had not seen them."""
        curve, held_out = self.curve, np.array(self.curve.held_out, dtype=bool)
        kinds = {"trained words": ~held_out, "held-out words": held_out}
        return {
            name: stats.accuracy(curve.rates[:, those], curve.trials[those])
            for name, those in kinds.items()
            if those.any()
        }

    def nats(self, place: int) -> tuple[str, str, str]:
        """In words: a cell's NLL, the paired difference to full attention's, and its KL to it."""
        nll, kl, gap = self.losses["nll"][place], self.losses["kl"][place], self.nll_to_dense
        level = said(nll, digits=3)
        if gap is None or place == self.curve.place(None):
            return level, "", ""
        return level, said(gap[place], signed=True, digits=3), said(kl, digits=3)

    @cached_property
    def exact(self) -> dict[Budget | None, int]:
        """The place of exact Top-k at each budget that it was run at."""
        return {cell.budget: p for p, cell in enumerate(self.curve.cells) if cell.indexer == EXACT}

    def to_exact(self, place: int) -> Interval | None:
        """The paired difference of one cell to exact Top-k at its budget."""
        exact = self.exact.get(self.curve.cells[place].budget)
        return None if exact is None or exact == place else self.against(exact)[place]

    def against(self, base: int) -> Interval:
        """The paired difference of each cell to the one at a place."""
        if base not in self._against:
            gaps = stats.difference(self.curve.rates, self.curve.trials, base)
            self._against[base] = gaps
        return self._against[base]

    def verdict(self, place: int) -> str:
        """Of a cell against full attention: as good, worse, better (to audit), or undecided."""
        dense = self.curve.place(None)
        if self.to_dense is None or dense is None or place == dense:
            return ""
        return judged(self.to_dense[place], self.margin, float(self.accuracy.value[dense]))
