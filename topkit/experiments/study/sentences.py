"""Numbers in words: an interval, a verdict, what fidelity orders and predicts."""

# pyright: strict
from __future__ import annotations

import numpy as np

from topkit.experiments.study.ordering import Ordering, Prediction
from topkit.experiments.study.stats import Interval

FEWEST = 5  # families below which an order says nothing
# Verdicts of a paired difference at a margin.
GOOD, WORSE, BETTER, UNDECIDED, FLOOR = (
    "as good",
    "worse",
    "better: audit",
    "undecided",
    "undecided: floor",
)


def said(interval: Interval, signed: bool = False, digits: int = 2) -> str:
    """A number with its interval; blank where there is none."""
    value, low, high = (round(x, digits) + 0.0 for x in interval)
    form = f"{'+' if signed else ''}.{digits}f"
    if not np.isfinite(value):
        return ""
    reach = f"{low:{form}}, {high:{form}}" if np.isfinite(low) else "one haystack"
    return f"{value:{form}} [{reach}]"


def judged(gap: Interval, margin: float, base: float = 1.0) -> str:
    """A paired difference in a word: as good (no worse than `margin`), worse, better, undecided.

    Nothing can lose more than `margin` against a `base` that scores no more: that is no test.
    """
    _, low, high = gap
    if low > 0:
        return BETTER
    if base <= margin:
        return FLOOR
    if low >= -margin:
        return GOOD
    return WORSE if high < -margin else UNDECIDED


def predicts(over: str, goal: str, found: Prediction) -> str:
    """How far off a family left out is predicted, and which of recall and mass predicts better."""
    recall, mass, neither = (said(x) for x in (found.recall, found.mass, found.neither))
    shown = said(found.mass_minus_recall, signed=True)
    _, low, high = found.mass_minus_recall
    if high < 0:
        better = f"Mass predicts better (mass minus recall {shown})."
    elif low > 0:
        better = f"Recall predicts better (mass minus recall {shown})."
    else:
        better = f"Which of the two predicts better is not decided (mass minus recall {shown})."
    return (
        f"{over}, {goal} of a family left out is predicted with a mean error of {recall} from recall, "
        f"of {mass} from mass, of {neither} from neither. {better}"
    )


def orders(goal: str, found: Ordering) -> str:
    """Whether a goal rises with recall and with mass, family by family, and which orders it better."""
    recall, mass = _trend(found.recall), _trend(found.mass)
    numbers = f"recall {said(found.recall)}, mass {said(found.mass)}"
    if not recall and not mass:
        return f"Of an order of the families nothing is shown (Spearman: {numbers})."
    if recall == mass:
        trend = f"{goal} {recall} both recall and mass"
    elif recall and mass:
        trend = f"{goal} {recall} recall and {mass} mass"
    else:
        one, other = ("recall", "mass") if recall else ("mass", "recall")
        trend = f"{goal} {recall or mass} {one}; with {other} nothing is shown"
    return f"Family by family, {trend} (Spearman: {numbers}). {_better(found.mass_minus_recall)}"


def _trend(correlation: Interval) -> str:
    _, low, high = correlation
    return "rises with" if low > 0 else "falls with" if high < 0 else ""


def _better(gap: Interval) -> str:
    _, low, high = gap
    shown = said(gap, signed=True)
    if low > 0:
        return f"Mass orders it better (mass minus recall {shown})."
    if high < 0:
        return f"Recall orders it better (mass minus recall {shown})."
    return f"Which of the two orders it better is not decided (mass minus recall {shown})."


def designed(over: str, goal: str, order: Ordering, found: Prediction | None) -> str:
    """Of oracles, which are chosen and not drawn: estimates, of which there are no intervals."""
    words = (
        f"{over} (design points, not a sample: without intervals), Spearman's correlation with {goal} is "
        f"{float(order.recall.value):.2f} of recall and {float(order.mass.value):.2f} of mass"
    )
    if found is not None:
        words += (
            f"; a manner of loss left out is predicted with a mean error of {float(found.recall.value):.2f} from "
            f"recall, of {float(found.mass.value):.2f} from mass, of {float(found.neither.value):.2f} from neither"
        )
    return f"{words}."


def sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "." if words else ""
