"""What results say of exact Top-k: beside full attention, over lengths, and in one group of heads at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from claimed import (
    MARGIN,
    NOT,
    NOT_RUN,
    PLANNED,
    SUPPORTED,
    UNDECIDED,
    Answer,
    apart,
    by_setting,
    lines,
    planned,
    plans,
    tally,
    where,
)
from committed import curves, folders, there

from topkit.experiments.study import exact_topk, stats
from topkit.experiments.study.blocks import Block
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import EQUAL
from topkit.experiments.study.heads import Mended, mcnemar, mended
from topkit.experiments.study.kinds import EXACT, name_of
from topkit.experiments.study.sentences import WORSE, said
from topkit.experiments.study.stats import Interval
from topkit.indexers.budget import parse_budget

COMPARED = ("k/N", "full attention", "exact Top-k", "difference", PLANNED, "verdict")
MENDED = ("poor indexer", "scores: it, exact Top-k", "groups that help alone", "run; must differ")  # fmt: skip
# One beyond the margin's.
DIGITS = 3
EXACT_TOPK = ("exact-topk", "exact-topk-smollm2", "exact-topk-quick")


def exact_equals(sparse_from: str) -> Answer:
    """At 5 % of the keys and more, where the paper has both nearly level; of one protocol."""
    names = there(*EXACT_TOPK) or there("smollm2", "fidelity-vs-accuracy")
    every = list(curves(*names))
    own = [curve for curve in every if curve.sparse_from == sparse_from]
    asked = {(one.model, one.task, one.length) for one in own}
    # Of what the other protocol was asked.
    absent = [one for one in every if (one.model, one.task, one.length) not in asked]
    enough = [one for one in exact_topk.verdicts(own, MARGIN) if one.share >= 0.05]
    words = {one.found.word for one in enough}
    verdict = NOT if WORSE in words else SUPPORTED if words == {EQUAL} else UNDECIDED
    if not enough:
        return Answer(NOT_RUN, folders(names))
    rows = [(one.curve, _row(one)) for one in enough]
    found = [
        *by_setting(_of_exact(enough), COMPARED, rows),
        *_of_fewer([one for one in exact_topk.verdicts(own, MARGIN) if one.share < 0.05]),
        *lines(*(f"Not run: {where(replace(one, sparse_from=sparse_from))}." for one in absent)),
    ]
    return Answer(verdict, folders(names), found)


def _of_fewer(made: list[exact_topk.Verdict]) -> list[Block]:
    """What a smaller share of the keys loses: a row a curve that has each of the shares."""
    budgets = list(dict.fromkeys(str(one.curve.cells[one.place].budget) for one in made))
    rows = list[tuple[Curve, list[str]]]()
    for title in dict.fromkeys((one.curve.model, one.curve.title) for one in made):
        own = [one for one in made if (one.curve.model, one.curve.title) == title]
        by_k = {str(one.curve.cells[one.place].budget): _gap(one) for one in own}
        rows.append((own[0].curve, [by_k.get(k, "") for k in budgets]))
    if not rows:
        return []
    worse = sum(one.found.word == WORSE for one in made)
    words = f"The same difference with fewer keys, which no verdict counts: {worse} of {len(made)} are worse."
    return by_setting(words, budgets, rows)


def _of_exact(made: list[exact_topk.Verdict]) -> str:
    found = [one.found for one in made]
    low, high = (pick(made, key=lambda one: one.found.gap.value) for pick in (min, max))
    same = sum(abs(float(one.gap.value)) < 1e-9 for one in found)
    # As the table prints them: an end that rounds to nought does not lie beyond it.
    below = sum(round(float(one.gap.high), DIGITS) < 0 for one in found)
    above = sum(round(float(one.gap.low), DIGITS) > 0 for one in found)
    return (
        f"Exact Top-k minus full attention, {len(made)} comparisons at a margin of {MARGIN:g}: {tally(one.word for one in found)}. "
        f"In {same} of them the two score the same; in {below} the interval lies below nought, in {above} "
        f"above. The differences go from {_gap(low)} ({where(low.curve)}, {low.share:.1%} of the keys) to {_gap(high)}.{plans(found)}"
    )


def _row(one: exact_topk.Verdict) -> list[str]:
    scores = (said(score, digits=DIGITS) for score in (one.dense, one.exact))
    return [f"{one.share:.1%}", *scores, _gap(one), planned(one.found), one.found.word]


def _gap(one: exact_topk.Verdict) -> str:
    return said(one.found.gap, signed=True, digits=DIGITS)


def longer_contexts() -> Answer:
    """The loss of exact Top-k at 1/32 of the keys, from the shortest context to the longest."""
    rows, losses = list[tuple[Curve, list[str]]](), list[tuple[int, Interval]]()
    names = there("smollm2")
    for curve in curves(*names):
        dense, exact = curve.place(None), curve.place(EXACT, parse_budget(curve.length // 32))
        if dense is not None and exact is not None:
            loss = stats.paired(curve.rates[[exact, dense]], curve.trials, 0)[1]
            losses.append((curve.length, loss))
            rows.append((curve, [f"{curve.length // 32}", said(loss)]))
    if len(losses) < 2:
        return Answer(NOT_RUN, folders(names))
    (short_, one), (long, other) = losses[0], losses[-1]
    gap = apart(other, one)
    verdict = SUPPORTED if gap.high < 0 else NOT if gap.low > 0 else UNDECIDED
    words = (
        f"What exact Top-k at 1/32 of the keys loses of full attention's accuracy, at {long:,} tokens minus at {short_:,}: "
        f"{said(gap, signed=True)}."
    )
    return Answer(verdict, folders(names), by_setting(words, ("k", "loss"), rows))


def heads() -> Answer:
    """Which KV groups help alone. That few do is no proof that few are needed; that many do would speak against it."""
    names = [*(there("heads") or there("heads-quick")), *there("heads-smollm2")]
    found = [(curve, one) for curve in curves(*names) for one in mended(curve)]
    if not found:
        return Answer(NOT_RUN, folders(names))
    rows = [(curve, _mended(curve, one)) for curve, one in found]
    shares = [len(one.helping) / len(one.groups) for _, one in found]
    note = (
        "A group that helps alone is one that matters; others may matter together, and exact Top-k everywhere but in one "
        "group was not run."
    )
    verdict = NOT if max(shares) > 0.25 else UNDECIDED
    made = by_setting(_of_heads([one for _, one in found]), MENDED, rows)
    return Answer(verdict, folders(names), [*made, *lines(note)])


def _mended(curve: Curve, one: Mended) -> list[str]:
    helping, least = f"{len(one.helping)} of {len(one.groups)}", least_of(len(one.groups))
    scores, counts = f"{one.score:.2f}, {one.exact:.2f}", f"{len(curve.haystacks)}; {least}"
    return [f"`{name_of(one.base)}`", scores, helping, counts]


def _of_heads(found: list[Mended]) -> str:
    most = max(found, key=lambda one: len(one.helping) / len(one.groups))
    none = sum(not one.helping for one in found)
    return (
        f"Of the KV groups that were made exact one at a time, at most {len(most.helping)} of {len(most.groups)} are shown to "
        f"raise a poor indexer; in {none} of {len(found)} cases none is. Of the haystacks that were run (*run*) at least "
        "so many must differ to show a group (*must differ*)."
    )


def least_of(groups: int, level: float = 0.05) -> int:
    """Haystacks that must differ, all one way, before McNemar's test with Holm's correction shows the first group."""
    count = np.arange(1, 100)
    return int(count[mcnemar(count, 0 * count) * groups <= level][0])
