"""What chance alone would leave of accuracy, were every key lost anew with the same probability."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT, family_of
from topkit.experiments.study.stats import Array
from topkit.indexers.budget import Budget

_SHORT = 1 / 20  # of the context: a window that seldom holds the answer


@dataclass(frozen=True)
class Null:
    """Exact Top-k's score times p^m: each of m tokens needs a key, which is kept with probability p.

    Where each of several references is scored for itself, m is the tokens of one.
    """

    score: float
    tokens: float

    def at(self, kept: Array) -> Array:
        return self.score * kept**self.tokens


def null_of(curve: Curve, budget: Budget) -> Null | None:
    """The null at a budget; None where exact Top-k was not run, or what needs a key is not known."""
    exact, tokens = curve.place(EXACT, budget), key_tokens(curve)
    if curve.measure == "token_accuracy" or exact is None or tokens is None:
        return None
    score = float(curve.rates[exact] @ curve.questions / curve.questions.sum())
    return Null(score, tokens / curve.parts) if np.isfinite(score + tokens) else None


def key_tokens(curve: Curve) -> float | None:
    """How many tokens of an answer need a key of it: those that a window on the end misses.

    What follows from the question and the tokens before, such as a leading blank, needs none: a short
    window, which holds these and seldom the answer, gets it right. None where no such window was run.
    """
    windows = [
        place
        for place in curve.where("real")
        if family_of(curve.cells[place]) == "window" and curve.kept[place] <= _SHORT * curve.length
    ]
    if not windows:
        return None
    right = (curve.token_rates[windows] @ curve.questions / curve.questions.sum()).max()
    return float(curve.answer_tokens * (1 - np.clip(right, 0, 1)))
