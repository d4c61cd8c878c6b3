"""Advice: the cheapest recipe of a run that is shown to hold, what is undecided, and what fails."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from topkit.documents import path_of, quote
from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.runs.cells import DENSE, Cell
from topkit.experiments.study.candidates import (
    ERROR,
    FAILS,
    HOLDS,
    UNDECIDED,
    Candidate,
    OnTask,
    candidates,
)
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equivalence import AGAINST
from topkit.experiments.study.kinds import words_of
from topkit.experiments.study.noninferiority import MOST
from topkit.experiments.study.reading import STUDY, reading, study_of
from topkit.grammar import nearest
from topkit.indexers.budget import Budgets, parse_budgets

MARGIN = 0.02
_SHOWN = 3  # recipes that a sentence names


@dataclass(frozen=True)
class Advice:
    """What the rows of a run say to who has to choose: recipes in the order of what they cost.

    left_out: a line for each recipe that cannot be judged; absent: for what was to be run and is not there.
    """

    margin: float
    against: str
    recipes: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = field(default=())

    def of(self, word: str) -> list[Candidate]:
        """The recipes that hold, fail or are undecided, the cheapest first."""
        return [one for one in self.recipes if one.word == word]

    @property
    def choice(self) -> Candidate | None:
        """The cheapest recipe that is shown to hold."""
        return next(iter(self.of(HOLDS)), None)

    @property
    def verdict(self) -> str:
        """holds, undecided, or fails where every recipe does."""
        return HOLDS if self.choice else UNDECIDED if self.of(UNDECIDED) else FAILS

    @property
    def sentence(self) -> str:
        """The choice and what it costs, or why there is none."""
        count, lost = len(self.recipes), f"{self.margin:g} against {AGAINST[self.against]}"
        open_ = self.of(UNDECIDED)
        if self.choice is None and not open_:
            return f"every one of {count} recipes is shown to lose more than {lost}"
        if self.choice is None:
            return f"none of {count} recipes is shown to lose less than {lost}; undecided: {_more(open_)}"
        held = len(self.of(HOLDS))
        words = (
            f"{words_of(self.choice.cell)} is the cheapest of {held} shown to lose less than {lost}, of {count} "
            f"recipes: {_cost(self.choice)}"
        )
        cheaper = [one for one in open_ if one.cost < self.choice.cost]
        return f"{words}; cheaper and undecided: {_more(cheaper)}" if cheaper else words

    def require(self) -> None:
        """Raises: Undecided where no recipe is shown to hold, and one may; GateFailed where all fail."""
        if self.verdict == UNDECIDED:
            raise Undecided(self.sentence)
        if self.verdict == FAILS:
            raise GateFailed(self.sentence)

    def summary(self) -> dict[str, Any]:
        """All of it as JSON has it; docs/advise.md says what each name means."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "choice": None if self.choice is None else _numbers(self.choice),
            "margin": self.margin,
            "against": self.against,
            "error": ERROR,
            "recipes": [_numbers(one) for one in self.recipes],
            "left_out": list(self.left_out),
            "missing": list(self.absent),
        }


def advise(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    against: str = "exact",
    k: Budgets | None = None,
    model: str | None = None,
) -> Advice:
    """Say which recipes of a run hold within a margin of accuracy on all of its tasks, and which of them is cheapest.

    run: a folder of `study` or `evaluate`, or several of one identity. against: exact Top-k at each recipe's own
    budget, or `dense`, full attention. k: the budgets that are looked at; all by default. model: of a study of
    several, one. Paired over haystacks, with Holm's correction for looking at many: in at most 5 % of studies any
    recipe that loses the margin is said to hold (docs/statistics.md).
    Returns: an Advice: .choice, .verdict, .sentence, .summary(), and .require() which raises unless one holds.
    Raises: InputError when the run holds no rows, or no recipe that can be compared.
    """
    several = list(run) if isinstance(run, list | tuple) else [run]
    runs = [path_of(one, "the folder of a run") for one in several]
    if not runs:
        raise InputError("no run to advise on; name the folders of one or more")
    if not 0 < margin < 1:
        raise InputError(f"margin must lie between 0 and 1; got {margin!r}")
    if against not in AGAINST:
        raise InputError(f"against must be dense or exact; got {against!r}")
    read = reading(runs, study_of(runs[0] / STUDY))
    return advice_of(_of_model(read.curves, model), margin, against, k, read.absent)


def advice_of(
    curves: Sequence[Curve],
    margin: float = MARGIN,
    against: str = "exact",
    k: Budgets | None = None,
    absent: Sequence[str] = (),
) -> Advice:
    """The advice of curves: one a task and length, of one model."""
    cells = list(dict.fromkeys(curve.cells[p] for curve in curves for p in curve.where("real")))
    if k is not None:
        cells = _at(cells, k)
    judged, left_out = candidates(curves, cells, margin, dense=against == DENSE)
    if not judged:
        why = left_out[0] if left_out else "it holds full attention, oracles and controls alone"
        raise InputError(f"no recipe of this run can be judged against {AGAINST[against]}: {why}")
    return Advice(margin, against, tuple(judged), tuple(left_out), tuple(absent))


def _at(cells: Sequence[Cell], k: Budgets) -> list[Cell]:
    budgets = parse_budgets(k)
    there = dict.fromkeys(str(cell.budget) for cell in cells)
    missing = [str(one) for one in budgets if str(one) not in there]
    if missing:
        raise InputError(
            f"no recipe was run at k = {', '.join(missing)}; there is -k {','.join(there) or 'none'}"
        )
    return [cell for cell in cells if cell.budget in budgets]


def _of_model(curves: Sequence[Curve], model: str | None) -> list[Curve]:
    names = list(dict.fromkeys(curve.model for curve in curves))
    if model is None and len(names) > 1:
        raise InputError(f"this study has several models; name one: {', '.join(names)}")
    if model is not None and names != [""] and model not in names:
        raise InputError(f"no model {quote(model)} in this study; {nearest(model, names)}")
    return [curve for curve in curves if model is None or names == [""] or curve.model == model]


def _cost(one: Candidate) -> str:
    if np.isnan(one.bytes_read):
        return "what it reads was not observed"
    share = one.bytes_read / one.exact_bytes
    of = f", {share:.2g} of what exact Top-k reads" if np.isfinite(share) else ""
    return (
        f"it reads {one.bytes_read / 1024:,.1f} KiB a layer and step{of}, and its index holds "
        f"{one.index_bytes / 1024:,.1f} KiB"
    )


def _more(several: Sequence[Candidate]) -> str:
    lines = [f"{words_of(one.cell)} ({_needs(one)})" for one in several[:_SHOWN]]
    rest = len(several) - len(lines)
    return ", ".join(lines) + (f" and {rest} more" if rest else "")


def _needs(one: Candidate) -> str:
    if any(on.paired is None for on in one.tasks):
        return "what it is compared with scores too little to lose anything"
    if one.to_decide is None:
        return f"more than {MOST:,} haystacks like these would decide"
    return f"about {one.to_decide:,} haystacks like these would decide"


def _numbers(one: Candidate) -> dict[str, Any]:
    return {
        "indexer": repr(one.cell.indexer),
        "k": str(one.cell.budget),
        "verdict": one.word,
        "bytes_read": _finite(one.bytes_read),
        "index_bytes": _finite(one.index_bytes),
        "exact_bytes_read": _finite(one.exact_bytes),
        "haystacks_to_decide": one.to_decide,
        "tasks": [_on_task(on) for on in one.tasks],
    }


def _on_task(on: OnTask) -> dict[str, Any]:
    return {
        "task": on.curve.task,
        "length": on.curve.length,
        "sparse_from": on.curve.sparse_from,
        "haystacks": len(on.curve.haystacks),
        "accuracy": on.accuracy,
        "compared_with": on.base,
        "difference": on.difference,
        "low": on.low,
        "high": on.high,
        "floor": on.paired is None,
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
