"""What results say of precision and fidelity: does accuracy rise with them, and what predicts it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from claimed import (
    NOT,
    NOT_RUN,
    SUPPORTED,
    UNDECIDED,
    Answer,
    by_setting,
    lines,
    table,
    tally,
    where,
)
from committed import curves, folders, there

from topkit.experiments.study.curve import Curve
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.kinds import family_of, manner_of, name_of
from topkit.experiments.study.ordering import family_means, ordering
from topkit.experiments.study.predictors import METRICS, predicted
from topkit.experiments.study.sentences import said
from topkit.experiments.study.stats import Interval

ORDERED = ("k", "haystacks", "families", "Spearman", "setting")
PRECISION = ("precision", "precision-smollm2", "precision-quick")
# A manner of loss and its two precisions, as the table of gains names them.
Manner = tuple[str, str]


def rises_in_a_manner() -> Answer:
    """Of each manner of loss, the largest precision against the smallest, on the same haystacks."""
    names = there(*PRECISION) or there("fidelity-vs-accuracy")
    made = [(curve, gains(curve)) for curve in curves(*names)]
    every = [gap for _, own in made for gap in own.values()]
    rises = [float(gap.low) > 0 for gap in every]
    verdict = SUPPORTED if rises and all(rises) else UNDECIDED
    if not every:
        return Answer(NOT_RUN, folders(names))
    manners = list(dict.fromkeys(manner for _, own in made for manner in own))
    rows = [
        [f"`{manner[0]}`", manner[1], *(said(own[manner], signed=True) if manner in own else "" for _, own in made)]
        for manner in manners
    ]  # fmt: skip
    columns = ("manner of loss", "precision", *(where(curve) for curve, _ in made))
    return Answer(verdict, folders(names), table(_of_gains(made), columns, rows))


def gains(curve: Curve) -> dict[Manner, Interval]:
    """Of each manner with several precisions, what the largest scores minus the smallest."""
    found, groups = Findings(curve), dict[str, list[int]]()
    for place in found.compared("oracle"):
        groups.setdefault(manner_of(curve.cells[place]), []).append(place)
    made = dict[Manner, Interval]()
    for places in (places for places in groups.values() if len(places) > 1):
        low, high = (pick(places, key=lambda p: curve.mean("recall")[p]) for pick in (min, max))
        ends = [name_of(curve.cells[place]) for place in (low, high)]
        made[_manner(*ends)] = found.against(low)[high]
    return made


def _manner(low: str, high: str) -> Manner:
    """`degraded(miss=page)` and `0.5 to 0.95`, of degraded(precision=0.5, miss=page) and another."""
    precision = re.compile(r"precision=([\d.]+)(, )?")
    ends = [found[1] for name in (low, high) if (found := precision.search(name))]
    return precision.sub("", low), " to ".join(ends)


def _of_gains(made: Sequence[tuple[Curve, dict[Manner, Interval]]]) -> str:
    every = [gap for _, own in made for gap in own.values()]
    up, down = (sum(bool(x > 0) for x in ends) for ends in ([g.low for g in every], [-g.high for g in every]))  # fmt: skip
    least, most = (pick(every, key=lambda gap: float(gap.value)) for pick in (min, max))
    still = [
        f"{', '.join(names)} ({curve.model})"
        for curve, own in made
        if (names := [f"`{manner}`" for (manner, _), gap in own.items() if gap.low <= 0 <= gap.high])
    ]  # fmt: skip
    return (
        f"Exact Top-k of the larger precision minus that of the smaller, in one manner of loss: of {len(every)} differences "
        f"{up} are shown to be gains and {down} losses; they go from {said(least, signed=True)} to {said(most, signed=True)}. "
        f"Not shown: {'; '.join(still) or 'none'}."
    )


def rises_over_methods() -> Answer:
    """Whether accuracy rises with recall from one family of real indexers to the next, and what predicts it."""
    names = there(*PRECISION, "smollm2", "smollm2-ruler", "fidelity-vs-accuracy")
    trends, errors = list[str](), list[dict[str, Interval]]()
    rows = list[tuple[Curve, list[str]]]()
    for curve in curves(*names):
        found = Findings(curve)
        places = found.compared("real")
        families = [family_of(curve.cells[place]) for place in places]
        word, goal = found.goal(places)
        if len(set(families)) < 5 or word != "accuracy":
            continue
        recall, mass = (
            family_means(curve.fidelity[m][places], families) for m in ("recall", "mass")
        )
        order = ordering(recall, mass, family_means(goal, families), curve.questions)
        trends.append("yes" if order.recall.low > 0 else "no" if order.recall.high < 0 else "open")
        errors.append({one.name: one.real for one in predicted(found) if one.real is not None})
        counts = f"{len(curve.haystacks)}", f"{len(set(families))}"
        rows.append((curve, [str(found.budget), *counts, said(order.recall), f"{len(rows) + 1}"]))
    verdict = SUPPORTED if set(trends) == {"yes"} else NOT if "no" in trends else UNDECIDED
    if not rows:
        return Answer(NOT_RUN, folders(names))
    trend = (
        f"Spearman's correlation of recall and accuracy over families of real indexers is shown to be positive in "
        f"{trends.count('yes')} of {len(trends)} settings and negative in {trends.count('no')}."
    )
    metrics = list(dict.fromkeys(name for own in errors for name in own))
    by_metric = [
        [f"`{name}`" if name in METRICS else name, *(said(own[name]) if name in own else "" for own in errors)]
        for name in metrics
    ]  # fmt: skip
    heads = ("predicted from", *(f"setting {n}" for n in range(1, len(rows) + 1)))
    return Answer(
        verdict,
        folders(names),
        [*by_setting(trend, ORDERED, rows), *table(_of_errors(errors), heads, by_metric)],
    )


def _of_errors(errors: Sequence[dict[str, Interval]]) -> str:
    """What errs least, of the metrics that were recorded."""
    metrics = [{name: gap for name, gap in own.items() if name in METRICS} for own in errors]
    best = [min(own, key=lambda name: float(own[name].value)) for own in metrics if own]
    with_ws = sum("ws" in own for own in metrics)
    return (
        "Mean error on a family left out, its accuracy predicted from the other families. The metric that errs least is "
        f"{tally(best, '`{word}` in {count}')} of {len(errors)} settings (`ws` was recorded in {with_ws})."
    )


def identities() -> Answer:
    return Answer(
        SUPPORTED,
        ["drawn scores, ties, groups and lists that are not the best, in float64"],
        lines(
            "Exact, to float32's rounding: tests/fidelity/test_identities.py, which also holds the output error to total "
            "variation times the distance of what was kept from what was not."
        ),
    )
