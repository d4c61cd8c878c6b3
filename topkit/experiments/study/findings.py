"""What a curve shows, in sentences made from its numbers."""

# pyright: strict
from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from topkit.experiments.study import stats
from topkit.experiments.study.curves import EXACT, Curve, kind_of, name_of, words_of
from topkit.experiments.study.stats import Interval, Ordering

MARGIN = 0.05
_FEWEST = 4  # cells below which a rank correlation says nothing


class Findings:
    """A curve's intervals, each computed once, and the sentences they allow."""

    def __init__(self, curve: Curve, margin: float = MARGIN) -> None:
        self.curve, self.margin = curve, margin

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
        return None if dense is None else self._to(dense)

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

    def to_exact(self, place: int) -> Interval | None:
        """The paired difference of one cell to exact Top-k at its budget."""
        exact = self.curve.place(EXACT, self.curve.cells[place].budget)
        return None if exact in (None, place) else self._to(exact)[place]

    def _to(self, base: int) -> Interval:
        return stats.difference(self.curve.rates, self.curve.trials, base)

    def ordering(self, kind: str) -> Ordering | None:
        """Rank correlations over the cells of a kind, at all budgets; None where they are too few."""
        curve = self.curve
        places = [p for p in curve.where(kind) if np.isfinite(curve.mean("recall")[p])]
        if len(places) < _FEWEST or len(curve.haystacks) < 2:
            return None
        recall, mass = curve.fidelity["recall"][places], curve.fidelity["mass"][places]
        return stats.ordering(recall, mass, curve.rates[places], curve.questions)

    def verdict(self, place: int) -> str:
        """Of a cell against full attention: as good, worse, better (to audit), or undecided."""
        if self.to_dense is None or place == self.curve.place(None):
            return ""
        return judged(self.to_dense[place], self.margin)

    def sentences(self) -> list[str]:
        """The findings in order of weight."""
        kinds = (("real", "real indexers"), ("oracle", "oracles"))
        sentences = [
            self._level(),
            self._nll(),
            self._notices(),
            *(orders(kind, self.ordering(kind), name) for kind, name in kinds),
            self._held_out(),
        ]
        return [sentence for sentence in sentences if sentence]

    def audits(self) -> list[str]:
        """What looks too good to be true."""
        lines: list[str] = []
        for place, cell in enumerate(self.curve.cells):
            if self.verdict(place) == "better: audit":
                gap = said(self.to_dense[place], signed=True)  # type: ignore[index]
                lines.append(
                    f"{words_of(cell)} beats full attention by {gap}. Look for a leak before believing it."
                )
            if kind_of(cell) == "control" and self.accuracy.low[place] > 0.1:
                score = said(self.accuracy[place])
                lines.append(
                    f"The control {words_of(cell)} scores {score}: it should be near chance."
                )
        return lines

    def _level(self) -> str:
        curve, words = self.curve, list[str]()
        dense, exact = curve.place(None), curve.place(EXACT, curve.budget)
        if dense is not None:
            words.append(f"full attention scores {said(self.accuracy[dense])}")
        if exact is not None:
            score = said(self.accuracy[exact])
            words.append(f"exact Top-k at k = {curve.budget} scores {score}")
        return _sentence(" and ".join(words))

    def _nll(self) -> str:
        """Full attention's NLL and what exact Top-k adds, where there is no right answer."""
        curve, dense = self.curve, self.curve.place(None)
        if dense is None or not curve.running_text:
            return ""
        level = said(self.losses["nll"][dense], digits=3)
        words = f"Full attention's NLL is {level} nats a token"
        exact = curve.place(EXACT, curve.budget)
        if exact is not None and self.nll_to_dense is not None:
            gap = said(self.nll_to_dense[exact], signed=True, digits=3)
            words += f"; that of exact Top-k at k = {curve.budget} differs by {gap}"
        return f"{words}."

    def _notices(self) -> str:
        """The least recall that is enough and the greatest that is not, at one budget.

        Against exact Top-k at that budget: what the budget itself costs is no fault of an indexer.
        """
        curve, recall, mass = self.curve, self.curve.mean("recall"), self.curve.mean("mass")
        exact = curve.place(EXACT, curve.budget)
        if exact is None:
            return ""
        gaps = self._to(exact)
        places = curve.where("real", "oracle", budget=curve.budget)
        places = [p for p in places if p != exact and np.isfinite(recall[p])]
        fine = [p for p in places if judged(gaps[p], self.margin) in ("as good", "better: audit")]
        worse = [p for p in places if judged(gaps[p], self.margin) == "worse"]

        def named(place: int) -> str:
            name = name_of(curve.cells[place])
            return f"{name} (recall {recall[place]:.2f}, mass {mass[place]:.2f})"

        cost = f"cost at most {self.margin:g} of exact Top-k's accuracy at k = {curve.budget}"
        least = min(fine, key=lambda p: recall[p], default=None)
        most = max(worse, key=lambda p: recall[p], default=None)
        if least is None:
            words = [f"No cell is shown to {cost}."]
        else:
            words = [f"The least recall shown to {cost} is that of {named(least)}."]
        if most is not None:
            words.append(f"The greatest recall shown to cost more is that of {named(most)}.")
        if least is not None and most is not None and recall[least] < recall[most]:
            words.append("So recall alone does not say whether the model notices.")
        return " ".join(words)

    def _held_out(self) -> str:
        """Full attention and exact Top-k on wordings that the model was not trained on."""
        curve = self.curve
        if len(self.apart) < 2:
            return ""
        parts: list[str] = []
        for place in (curve.place(None), curve.place(EXACT, curve.budget)):
            if place is not None:
                score = self.apart["held-out words"][place]
                parts.append(f"{words_of(curve.cells[place])} scores {said(score)}")
        return (
            f"On the {sum(curve.held_out)} of {len(curve.held_out)} haystacks whose wording or task was absent "
            f"from the reference model's training, {' and '.join(parts)}."
        )


def judged(gap: Interval, margin: float) -> str:
    """A paired difference in a word: as good (no worse than `margin`), worse, better, undecided."""
    _, low, high = gap
    if low > 0:
        return "better: audit"
    if low >= -margin:
        return "as good"
    return "worse" if high < -margin else "undecided"


def orders(kind: str, ordering: Ordering | None, name: str) -> str:
    """Whether accuracy rises with recall and with mass, and which orders it better."""
    if ordering is None:
        return f"Over {name}, nothing is shown: there are fewer than {_FEWEST} to compare."
    over = f"Over {ordering.cells} {name}" + (
        " (exact Top-k among them)" if kind == "oracle" else ""
    )
    recall, mass = _trend(ordering.recall), _trend(ordering.mass)
    numbers = f"recall {said(ordering.recall)}, mass {said(ordering.mass)}"
    if not recall and not mass:
        return f"{over}, nothing is shown: Spearman's correlations with accuracy are {numbers}."
    if recall == mass:
        trend = f"accuracy {recall} both recall and mass"
    elif recall and mass:
        trend = f"accuracy {recall} recall and {mass} mass"
    else:
        one, other = ("recall", "mass") if recall else ("mass", "recall")
        trend = f"accuracy {recall or mass} {one}; with {other} nothing is shown"
    return f"{over}, {trend} (Spearman: {numbers}). {_better(ordering.mass_less_recall)}"


def _trend(correlation: Interval) -> str:
    _, low, high = correlation
    return "rises with" if low > 0 else "falls with" if high < 0 else ""


def _better(gap: Interval) -> str:
    _, low, high = gap
    shown = said(gap, signed=True)
    if low > 0:
        return f"Mass orders accuracy better (mass minus recall {shown})."
    if high < 0:
        return f"Recall orders accuracy better (mass minus recall {shown})."
    return f"Which of the two orders accuracy better is not decided (mass minus recall {shown})."


def said(interval: Interval, signed: bool = False, digits: int = 2) -> str:
    """A number with its interval; blank where there is none."""
    value, low, high = (round(x, digits) + 0.0 for x in interval)
    form = f"{'+' if signed else ''}.{digits}f"
    if not np.isfinite(value):
        return ""
    reach = f"{low:{form}}, {high:{form}}" if np.isfinite(low) else "one haystack"
    return f"{value:{form}} [{reach}]"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "." if words else ""
