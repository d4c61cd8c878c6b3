"""What predicts accuracy: the error of each metric on a family of indexers that is left out."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from topkit.experiments.study import stats
from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, Table
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.kinds import EXACT, family_of, manner_of
from topkit.experiments.study.null import null_of
from topkit.experiments.study.ordering import left_out_errors
from topkit.experiments.study.sentences import FEWEST, said
from topkit.experiments.study.stats import Array, Interval

# Of each metric whether more of it is better.
METRICS = {"recall": 1, "mass": 1, "mass_ratio": 1, "top1": 1, "output_error": -1, "ws": 1}
NEITHER = "the others' mean"
NULL = "the null of {}"
COLUMNS = ("predicted from", "real families: mean error", "minus that from mass", "manners of loss: mean error")  # fmt: skip
HOW = (
    "The goal is predicted by the best curve that never falls through the cells of all families but one, each "
    "family counting once; the error is that on the family left out. Real families: Student's interval over them. "
    "Manners of loss are design points, not a sample: estimates alone. The null fits nothing: it is exact Top-k's own "
    "score times p^m, of m tokens that need a key and the share p of exact Top-k's recall or mass that is left "
    "(docs/statistics.md). `ws` is the weight that attention over the chosen keys gives to the answer's key, mean "
    "over layers and heads."
)


@dataclass(frozen=True)
class Predicted:
    """The error from one metric: over real families, less that from mass, and over manners of loss."""

    name: str
    real: Interval | None
    minus_mass: Interval | None
    manners: float | None


def predicted(findings: Findings) -> list[Predicted]:
    """Of each metric that was judged at the budget, its errors; fewer than five families have none."""
    curve, errors = findings.curve, dict[str, dict[str, Array]]()
    for kind, of in (("real", family_of), ("oracle", manner_of)):
        places = findings.compared(kind)
        names = [of(curve.cells[place]) for place in places]
        if len(set(names)) < (FEWEST if kind == "real" else 2):
            continue
        number = {name: n for n, name in enumerate(dict.fromkeys(names))}
        families = np.array([number[name] for name in names])
        _, goal = findings.goal(places)
        wanted = goal @ curve.questions / curve.questions.sum()
        for name, values in _values(findings, places).items():
            fitted = name not in (NULL.format("recall"), NULL.format("mass"))
            found = (
                left_out_errors(values, wanted, families)
                if fitted
                else _means(np.abs(values - wanted), families)
            )
            errors.setdefault(name, {})[kind] = found
    return [_predicted(name, kinds, errors.get("mass", {})) for name, kinds in errors.items()]


def _values(findings: Findings, places: Sequence[int]) -> dict[str, Array]:
    """What each metric is at the places; only metrics that all of them have."""
    curve, at = findings.curve, list(places)
    values = {
        name: sign * curve.mean(name)[at]
        for name, sign in METRICS.items()
        if name in curve.fidelity
    }
    values[NEITHER] = np.zeros(len(at))
    exact = curve.place(EXACT, findings.budget)
    null = None if findings.budget is None else null_of(curve, findings.budget)
    if null is not None and exact is not None and findings.goal(at)[0] == "accuracy":
        for name in ("recall", "mass"):
            kept = curve.mean(name)
            values[NULL.format(name)] = null.at(np.clip(kept[at] / kept[exact], 0, 1))
    return {name: x for name, x in values.items() if np.isfinite(x).all()}


def _means(errors: Array, families: Array) -> Array:
    return np.bincount(families, errors) / np.bincount(families)


def _predicted(name: str, kinds: dict[str, Array], mass: dict[str, Array]) -> Predicted:
    real, oracles, base = kinds.get("real"), kinds.get("oracle"), mass.get("real")
    return Predicted(
        name,
        None if real is None else _over(real),
        None if real is None or base is None or name == "mass" else _over(real - base),
        None if oracles is None else float(oracles.mean()),
    )


def _over(errors: Array) -> Interval:
    """The mean over families."""
    return stats.mean(errors[None], np.ones(len(errors)))[0]


def blocks(several: Sequence[Findings], level: int = 2) -> Iterator[Block]:
    """The section of a report, or of a page: a table a curve."""
    yield Heading("What predicts accuracy of indexers left out?", level)
    yield Paragraph(HOW)
    for findings in several:
        curve, made = findings.curve, predicted(findings)
        yield Heading(f"{curve.title}; k = {findings.budget}", level + 1)
        if not made:
            yield Items([f"Nothing is shown: fewer than {FEWEST} real families and 2 manners of loss were judged."])  # fmt: skip
            continue
        yield Items(list(sentences(findings, made)))
        yield Table(COLUMNS, [_row(one) for one in made])


def sentences(findings: Findings, made: Sequence[Predicted]) -> Iterator[str]:
    """Which metric errs least, whether that is shown against mass, and what has no answer key."""
    known = [one for one in made if one.name in METRICS and one.real is not None]
    if known:
        best = min(known, key=lambda one: float(one.real.value) if one.real else 1)
        assert best.real is not None
        goal = findings.goal(findings.compared("real"))[0].partition(",")[0]
        words = f"Of a real family left out, {goal} is predicted best from {best.name}: mean error {said(best.real)}"
        if best.minus_mass is not None:
            high = float(best.minus_mass.high)
            shown = "" if high < 0 else "; that this is less than from mass is not shown"
            words += f", {said(best.minus_mass, signed=True)} against mass{shown}"
        yield f"{words}."
    manners = [one for one in made if one.name in METRICS and one.manners is not None]
    if manners:
        best = min(manners, key=lambda one: one.manners or 0)
        yield (
            f"Of a manner of loss left out (design points, no interval) it is predicted best from {best.name}: mean "
            f"error {best.manners:.2f}."
        )
    if "ws" not in {one.name for one in made}:
        yield f"There is no ws: of {findings.curve.task} no answer's key was observed."


def _row(one: Predicted) -> list[str]:
    return [
        f"`{one.name}`" if one.name in METRICS else one.name,
        "" if one.real is None else said(one.real),
        "" if one.minus_mass is None else said(one.minus_mass, signed=True),
        "" if one.manners is None else f"{one.manners:.2f}",
    ]
