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
    """How far off a family left out is predicted, and whether recall or mass predicts it better."""
    recall, mass, neither = (said(x) for x in (found.recall, found.mass, found.neither))
    gap = said(found.mass_minus_recall, signed=True)
    _, low, high = found.mass_minus_recall
    better = "Mass" if high < 0 else "Recall" if low > 0 else ""
    shown = (
        f"{better} predicts better" if better else "Which of the two predicts better is not decided"
    )
    return (
        f"{over}: each family was left out in turn, and its {goal} predicted from the others. The mean error is "
        f"{recall} by recall, {mass} by mass, and {neither} by the mean of the others. {shown} (mean error by mass minus "
        f"that by recall: {gap})."
    )


def orders(goal: str, found: Ordering) -> str:
    """Whether a goal rises with recall and with mass from family to family, and which orders it better."""
    recall, mass = _trend(found.recall), _trend(found.mass)
    numbers = (
        f"Spearman's correlation: {said(found.recall)} with recall, {said(found.mass)} with mass"
    )
    if not recall and not mass:
        return (
            f"That {goal} rises with recall or mass from family to family is not shown ({numbers})."
        )
    if recall == mass:
        trend = f"{recall} both recall and mass"
    elif recall and mass:
        trend = f"{recall} recall and {mass} mass"
    else:
        one, other = ("recall", "mass") if recall else ("mass", "recall")
        trend = f"{recall or mass} {one}, which is not shown of {other}"
    return f"From family to family, {goal} {trend} ({numbers}). {_better(found.mass_minus_recall)}"


def _trend(correlation: Interval) -> str:
    _, low, high = correlation
    return "rises with" if low > 0 else "falls with" if high < 0 else ""


def _better(gap: Interval) -> str:
    _, low, high = gap
    better = "Mass" if low > 0 else "Recall" if high < 0 else ""
    shown = (
        f"{better} orders it better"
        if better
        else "Which of the two orders it better is not decided"
    )
    return f"{shown} (correlation of mass minus that of recall: {said(gap, signed=True)})."


def designed(over: str, goal: str, order: Ordering, found: Prediction | None) -> str:
    """Of oracles, which are chosen and not drawn: estimates, of which there are no intervals."""
    words = (
        f"{over} (chosen, not sampled, hence no intervals): Spearman's correlation with {goal} is "
        f"{float(order.recall.value):.2f} for recall and {float(order.mass.value):.2f} for mass."
    )
    if found is None:
        return words
    recall, mass, neither = (float(x.value) for x in (found.recall, found.mass, found.neither))
    return (
        f"{words} With one manner of loss left out and predicted from the others, the mean error is {recall:.2f} by "
        f"recall, {mass:.2f} by mass, and {neither:.2f} by the mean of the others."
    )


def sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "." if words else ""
