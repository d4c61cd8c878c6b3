"""Whether a study reached what it aims at."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topkit.experiments.study.intervals import Intervals
from topkit.experiments.study.kinds import EXACT


def checks(findings: Intervals, study: Mapping[str, Any]) -> list[str]:
    """Whether the intervals are as narrow, and the task as difficult, as the study aims at."""
    curve, aims = findings.curve, study.get("aims", {})
    widest, lines = float(findings.accuracy.reach.max()), list[str]()
    if "reach" in aims:
        met = "met" if widest <= aims["reach"] else "NOT met"
        lines.append(
            f"{curve.title}: the widest interval on an accuracy is ±{widest:.3f}; the aim of "
            f"±{aims['reach']:g} is {met}."
        )
    if "exact_between" in aims:
        low, high = aims["exact_between"]
        places = [p for p in curve.where("oracle") if curve.cells[p].indexer == EXACT]
        within = [p for p in places if low <= findings.accuracy.value[p] <= high]
        budgets = ", ".join(str(curve.cells[p].budget) for p in within)
        met = f"met at k = {budgets}" if within else "NOT met at any k that was run"
        lines.append(
            f"{curve.title}: that exact Top-k scores between {low:g} and {high:g} is {met}."
        )
    if curve.dropped:
        lines.append(f"{curve.title}: {curve.dropped} haystacks were left out, unfinished.")
    lines += [
        f"{curve.title}: {recipe} is shown by its name, and counts as a real indexer: {recipe.why}."
        for recipe in curve.unknown
    ]
    return lines
