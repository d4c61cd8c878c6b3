"""What a study of a law says: for each model the verdict, the errors of the law and its rivals, the calibration."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from topkit.experiments.study import stats
from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, Table
from topkit.experiments.study.law import Law
from topkit.experiments.study.law_points import RIVALS, Point, Predictions
from topkit.experiments.study.law_rows import FORMS
from topkit.experiments.study.law_verdict import Tested, assessed, rival, verdict
from topkit.experiments.study.sentences import said
from topkit.experiments.study.stats import Interval

UNTESTED = "No task that the law is registered to predict of this model was run with two families and can be counted."
COLUMNS = ("predicted from", "mean error on a family", "slope", "intercept", "fitted to")
HOW = (
    "The law has no number that is fitted here: an expected score is full attention's times the product, over the steps "
    "of the answer whose key stands in the haystack, of {formula}, ws being the mean over the model's {heads} reading "
    "heads of the weight that attention over the chosen keys gives to that key. Observed: of the queries of the cell "
    "itself; shadow: of the unchanged model's. Reading heads are those of the largest weight on the key in a dense pass "
    "over {split} haystacks of their own. Each rival is the best curve that never falls through all other families' "
    "points of the model. Errors: Student's interval over families, each counting once; calibrated is a slope of 1 and "
    "an intercept of 0, whose intervals draw families. Oracles' manners of loss count as families here, as registered."
)


@dataclass(frozen=True)
class Outcome:
    """A model's verdict by a form of the law, and what it is made of."""

    model: str
    form: str
    word: str
    why: str
    law: Tested
    families: int
    cells: int
    haystacks: int


def registered(law: Law, found: Predictions) -> list[Point]:
    """The points of tasks that the law is registered to predict of a model."""
    tasks = law.tasks_of(found.model)
    unseen = [point for point in found.points if point.task.partition(":")[0] not in law.seen]
    return [point for point in unseen if point.task in tasks]


def counted(law: Law, found: Predictions) -> list[Point]:
    """Of these, the points of tasks that full attention does."""
    return [point for point in registered(law, found) if point.dense >= law.dense]


def outcome(law: Law, found: Predictions, form: str) -> Outcome | None:
    """None where no point is registered, or none has the form."""
    points = [point for point in counted(law, found) if form in point.predicted]
    if len({point.family for point in points}) < 2:
        return None
    families = [point.family for point in points]
    made = assessed(
        np.array([point.predicted[form] for point in points]),
        np.array([point.scored for point in points]),
        families,
        np.array([point.noise[form] for point in points]),
    )
    count, haystacks = len(set(families)), min(point.haystacks for point in points)
    ran = {point.task for point in registered(law, found)}
    left = [task for task in law.tasks_of(found.model) if task not in ran]
    word, why = verdict(law, made, count, haystacks, left)
    return Outcome(found.model, form, word, why, made, count, len(points), haystacks)


def blocks(law: Law, several: Sequence[Predictions], level: int = 2) -> Iterator[Block]:
    """The section of a report, or of a page."""
    yield Heading(f"Does the law {law.name} hold?", level)
    yield Paragraph(HOW.format(formula=f"`{law.formula}`", heads=law.heads, split=law.split))
    for found in several:
        yield Heading(found.model, level + 1)
        yield Items(list(sentences(law, found)))
        rows = list(_rows(law, found))
        if rows:
            yield Table(COLUMNS, rows)


def sentences(law: Law, found: Predictions) -> Iterator[str]:
    """The verdict by each form, how much of the error is chance, and what is not counted."""
    outcomes = [one for form in FORMS if (one := outcome(law, found, form)) is not None]
    for one in outcomes:
        yield (
            f"{one.form.capitalize()}: {one.word}. {one.why[0].upper()}{one.why[1:]} (mean error on a family "
            f"{said(one.law.error, digits=3)}, of which sampling alone would leave {one.law.by_chance:.3f}; "
            f"{one.cells} cells of {one.families} families, {one.haystacks} haystacks a task)."
        )
    if not outcomes:
        yield UNTESTED
    if curves := list(fitted(counted(law, found))):
        errors = ", ".join(f"{said(made.error, digits=3)} from `{name}`" for name, made in curves)
        yield f"Curves fitted to the other families predict a family with a mean error of {errors}."
    yield from uncounted(law, found)
    heads = ", ".join(f"{layer}.{head}" for layer, head in found.reading.heads)
    yield (
        f"Reading heads (layer.head): {heads}. At {said(steady(found))} of the steps of the dense pass the head with the "
        "largest weight on the key is one of them."
    )
    if found.missed:
        count = sum(count for _, count in found.missed)
        told = f"The {count:,} answers with a step whose key all of them missed score {said(broken(found))}"
        if found.others:
            told += f", the {sum(n for _, n in found.others):,} others {said(unbroken(found))}"
        yield f"{told}."


def uncounted(law: Law, found: Predictions) -> Iterator[str]:
    """The tasks that were run and that no verdict counts, and why."""
    asked = registered(law, found)
    lost = {f"{p.task} ({p.dense:.2f})": None for p in asked if p.dense < law.dense}
    if lost:
        yield f"Not counted, since full attention scores less than {law.dense:g} on them: {', '.join(lost)}."
    tasks = dict.fromkeys(point.task for point in found.points)
    other = [task for task in tasks if task not in {point.task for point in asked}]
    if other:
        yield f"Not counted, since the law was chosen on them or is not registered for them: {', '.join(other)}."


def steady(found: Predictions) -> Interval:
    """The share of steps whose heaviest head is a reading head, over haystacks of the split."""
    stays = np.array(found.reading.stays)
    return stats.accuracy(stays[None], np.ones(len(stays)))[0]


def broken(found: Predictions) -> Interval:
    """What answers score of which all reading heads missed a key, over haystacks."""
    return _scored(found.missed)


def unbroken(found: Predictions) -> Interval:
    """What all other answers score."""
    return _scored(found.others)


def _scored(by_haystack: Sequence[tuple[float, int]]) -> Interval:
    scores, counts = (np.array(x, dtype=float) for x in zip(*by_haystack, strict=True))
    return stats.accuracy(scores[None], counts)[0]


def _rows(law: Law, found: Predictions) -> Iterator[list[str]]:
    points = counted(law, found)
    for form in FORMS:
        one = outcome(law, found, form)
        if one is not None:
            yield _row(f"the law, {form}", one.law, "nothing")
    for name, made in fitted(points):
        yield _row(f"`{name}`", made, "the other families")


def fitted(points: Sequence[Point]) -> Iterator[tuple[str, Tested]]:
    """Each measure by itself, as the best curve through the other families predicts a family from it."""
    families = [point.family for point in points]
    if len(set(families)) < 2:
        return
    scored = np.array([point.scored for point in points])
    for name, sign in {"ws": 1, **RIVALS}.items():
        values = sign * np.array([point.metrics[name] for point in points])
        if np.isfinite(values).all():
            yield name, assessed(rival(values, scored, families), scored, families)


def _row(name: str, found: Tested, curve_of: str) -> list[str]:
    return [
        name,
        said(found.error, digits=3),
        said(found.slope),
        said(found.intercept, signed=True),
        curve_of,
    ]
