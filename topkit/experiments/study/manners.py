"""Oracles as figures draw them: a line a manner of loss."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from dataclasses import fields
from typing import Any

from topkit.experiments.study.curve import Curve
from topkit.indexers.budget import Budget
from topkit.indexers.degraded import degraded

_STYLES = (
    ("-", "o", "#111111"),
    ("--", "s", "#3b6fb6"),
    ("-.", "^", "#c2571a"),
    ((0, (6, 1.5, 1, 1.5, 1, 1.5)), "D", "#5a9367"),
    ((0, (3, 1)), "v", "#8e3b7a"),
    ((0, (1.5, 1)), "P", "#8c8c8c"),
    ((0, (8, 3)), "X", "#b08900"),
)


def oracle_families(curve: Curve, budget: Budget) -> dict[str, list[int]]:
    """The places of degraded(...) cells that differ in precision alone, by a name for the manner."""
    families: dict[str, list[int]] = {}
    for place in curve.where("oracle", budget=budget):
        indexer = curve.cells[place].indexer
        if isinstance(indexer, degraded):
            families.setdefault(manner_words(indexer), []).append(place)
    return families


def manner_words(oracle: degraded) -> str:
    """What is lost, what takes its place, how far a loss reaches."""
    words = [f"lost {oracle.miss}, filled {oracle.fill}"]
    named = {f.name: f.default for f in fields(oracle)}
    if (oracle.persist, oracle.per) != (named["persist"], named["per"]):
        words.append(f"for the whole {oracle.persist}, per {oracle.per}")
    return "oracle: " + ", ".join(words)


def style(number: int) -> dict[str, Any]:
    """Dash, marker and colour of the manner of a number; there are as many as come round again."""
    dash, marker, color = _STYLES[number % len(_STYLES)]
    return {"ls": dash, "marker": marker, "color": color, "mfc": "white"}
