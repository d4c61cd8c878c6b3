"""What a curve shows at one budget, in sentences made from its numbers."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from topkit.experiments.study.cell_rows import Row, cell_rows
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.intervals import MARGIN, Intervals
from topkit.experiments.study.kinds import EXACT, family_of, kind_of, manner_of, name_of, words_of
from topkit.experiments.study.ordering import Ordering, family_means, ordering, prediction
from topkit.experiments.study.sentences import (
    BETTER,
    FEWEST,
    GOOD,
    WORSE,
    designed,
    judged,
    orders,
    predicts,
    said,
    sentence,
)
from topkit.experiments.study.stats import Array
from topkit.indexers.budget import Budget

_EDGE = 0.01  # an interval that comes so close to 0 or 1 tells cells no longer apart


class Findings(Intervals):
    """A curve's intervals, and the sentences they allow at a budget.

    budget: that of most real indexers where none is named.
    """

    def __init__(self, curve: Curve, margin: float = MARGIN, budget: Budget | None = None) -> None:
        super().__init__(curve, margin)
        self.budget = curve.budget if budget is None else budget

    @cached_property
    def rows(self) -> list[Row]:
        """What figures and tables show: a row a cell, whatever the budget."""
        return cell_rows(self)

    def compared(self, *kinds: str) -> list[int]:
        """The places of the cells of some kinds at the budget that were judged; exact Top-k is no one of them.

        Nor are cells whose k covers the whole context, where fidelity tells nothing.
        """
        numbers = self.curve.mean("recall") + self.curve.mean("mass") + self.accuracy.value
        judged = np.isfinite(numbers) & ~self.curve.trivial
        places = self.curve.where(*kinds, budget=self.budget)
        return [p for p in places if judged[p] and self.curve.cells[p].indexer != EXACT]

    def goal(self, places: Sequence[int]) -> tuple[str, Array]:
        """What fidelity is to order, in a word and as numbers [cells, H], more being better.

        Minus NLL where accuracy is at its floor or ceiling for most of the cells, or says nothing.
        """
        low, high = (x[list(places)] for x in (self.accuracy.low, self.accuracy.high))
        stuck = (low <= _EDGE) | (high >= 1 - _EDGE)
        nll = self.curve.losses["nll"][list(places)]
        if np.isfinite(nll).all() and (self.curve.running_text or stuck.mean() > 0.5):
            return "minus NLL, in nats a token,", -nll
        return "accuracy", self.curve.rates[list(places)]

    def sentences(self) -> list[str]:
        """The findings in order of weight."""
        lines = [
            self._level(),
            self._nll(),
            self._notices(),
            self._real(),
            self._oracles(),
            self._held_out(),
        ]
        return [line for line in lines if line]

    def audits(self) -> list[str]:
        """What is no number, and what looks too good to be true."""
        lines = list(self._unscored())
        for place, cell in enumerate(self.curve.cells):
            if self.verdict(place) == BETTER:
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

    def _unscored(self) -> Iterator[str]:
        """What has no accuracy, since a haystack has no score that is a number."""
        missing = ~np.isfinite(self.curve.rates)
        cells = [words_of(self.curve.cells[place]) for place in np.flatnonzero(missing.any(1))]
        if cells:
            named = ", ".join(cells[:4]) + (f" and {len(cells) - 4} more" if cells[4:] else "")
            yield f"No accuracy of {named}: on {missing.any(0).sum()} of {missing.shape[1]} haystacks a score is no number."

    def _level(self) -> str:
        curve, words = self.curve, list[str]()
        dense, exact = curve.place(None), curve.place(EXACT, self.budget)
        if dense is not None:
            words.append(f"full attention scores {said(self.accuracy[dense])}")
        if exact is not None:
            score = said(self.accuracy[exact])
            words.append(f"exact Top-k at k = {self.budget} scores {score}")
        return sentence(" and ".join(words))

    def _nll(self) -> str:
        """Full attention's NLL and what exact Top-k adds, where accuracy does not tell them apart."""
        curve, dense = self.curve, self.curve.place(None)
        places = self.compared("real")
        if dense is None or not (
            curve.running_text or (places and self.goal(places)[0] != "accuracy")
        ):
            return ""
        level = said(self.losses["nll"][dense], digits=3)
        if not level:
            return ""
        words = f"Full attention's NLL is {level} nats a token"
        exact = curve.place(EXACT, self.budget)
        if exact is not None and self.nll_to_dense is not None:
            gap = said(self.nll_to_dense[exact], signed=True, digits=3)
            words += f"; that of exact Top-k at k = {self.budget} differs by {gap}"
        return f"{words}."

    def _notices(self) -> str:
        """The least recall that is enough and the greatest that is not.

        Against exact Top-k at that budget: what the budget itself costs is no fault of an indexer.
        """
        curve, recall, mass = self.curve, self.curve.mean("recall"), self.curve.mean("mass")
        exact = curve.place(EXACT, self.budget)
        if exact is None:
            return ""
        score, gaps = float(self.accuracy.value[exact]), self.against(exact)
        if score <= self.margin:
            return f"Exact Top-k itself scores {score:.2f} at k = {self.budget}: no loss of {self.margin:g} could show."
        verdicts = {p: judged(gaps[p], self.margin) for p in self.compared("real", "oracle")}

        def against(place: int) -> str:
            return f"for {name_of(curve.cells[place])} (mass {mass[place]:.2f})"

        fine = [p for p, verdict in verdicts.items() if verdict in (GOOD, BETTER)]
        worse = [p for p, verdict in verdicts.items() if verdict == WORSE]
        least = min(fine, key=lambda p: recall[p], default=None)
        most = max(worse, key=lambda p: recall[p], default=None)
        base = f"exact Top-k at k = {self.budget}"
        words = list[str]()
        if least is None:
            words.append(
                f"No indexer is shown to lose at most {self.margin:g} of accuracy against {base}."
            )
        else:
            words.append(
                f"A recall of {recall[least]:.2f} is enough {against(least)}: its accuracy minus that of {base} is "
                f"{said(gaps[least], signed=True)}, which excludes a loss of more than {self.margin:g}."
            )
        if most is not None:
            words.append(
                f"A recall of {recall[most]:.2f} is too little {against(most)}: its accuracy minus that of {base} is "
                f"{said(gaps[most], signed=True)}."
            )
        if least is not None and most is not None and recall[least] < recall[most]:
            words.append("So recall alone does not say whether the model notices.")
        return " ".join(words)

    def _means(self, places: Sequence[int], goal: Array) -> tuple[Array, Array, Array]:
        """Recall, mass and the goal of each cell."""
        questions = self.curve.questions
        recall, mass = (self.curve.mean(name)[list(places)] for name in ("recall", "mass"))
        return recall, mass, goal @ questions / questions.sum()

    def _order(self, places: Sequence[int], goal: Array, units: Sequence[str]) -> Ordering:
        recall, mass = (self.curve.fidelity[name][list(places)] for name in ("recall", "mass"))
        recall, mass, goal = (family_means(values, units) for values in (recall, mass, goal))
        return ordering(recall, mass, goal, self.curve.questions)

    def _real(self) -> str:
        """What fidelity tells of real indexers, one value a family."""
        places = self.compared("real")
        families = [family_of(self.curve.cells[place]) for place in places]
        count = len(set(families))
        over = f"{len(places)} real indexers of {count} families at k = {self.budget}"
        if self.budget is None or count < FEWEST or len(self.curve.haystacks) < 2:
            few = f"fewer than {FEWEST} families" if count < FEWEST else "fewer than 2 haystacks"
            return f"What recall and mass predict of real indexers is not shown: there are {few} to compare."
        word, goal = self.goal(places)
        predicted = predicts(over, word, prediction(*self._means(places, goal), families))
        return f"{predicted} {orders(word.partition(',')[0], self._order(places, goal, families))}"

    def _oracles(self) -> str:
        """What fidelity tells of oracles, which change precision alone."""
        places = self.compared("oracle")
        manners = [manner_of(self.curve.cells[place]) for place in places]
        if len(places) < FEWEST:
            return ""
        word, goal = self.goal(places)
        several = len(set(manners)) > 1
        found = prediction(*self._means(places, goal), manners) if several else None
        alone = [str(place) for place in places]
        over = f"{len(places)} oracles at k = {self.budget}"
        return designed(over, word.partition(",")[0], self._order(places, goal, alone), found)

    def _held_out(self) -> str:
        """Full attention and exact Top-k on wordings that the model was not trained on."""
        curve = self.curve
        if len(self.apart) < 2:
            return ""
        parts: list[str] = []
        for place in (curve.place(None), curve.place(EXACT, self.budget)):
            if place is not None:
                score = self.apart["held-out words"][place]
                parts.append(f"{words_of(curve.cells[place])} scores {said(score)}")
        return (
            f"On the {sum(curve.held_out)} of {len(curve.held_out)} haystacks whose wording or task was absent "
            f"from the reference model's training, {' and '.join(parts)}."
        )
