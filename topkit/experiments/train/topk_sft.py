"""The study topk-sft: whether training with Top-k attention unlocks decoding by Top-k, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.study.blocks import Block, Drawn, Heading, Items, Paragraph, Table
from topkit.experiments.study.lines import Series, lines
from topkit.experiments.study.stats import Interval, mean
from topkit.experiments.train.arms import BEFORE, DENSE
from topkit.experiments.train.arms_page import write_page
from topkit.experiments.train.found import Start, gaps
from topkit.experiments.train.topk_changes import Beside, Moved, besides, moves, score
from topkit.indexers.budget import parse_budget

TITLE = "Does training with Top-k attention unlock Top-k decoding?"
HOW = (
    "Each start is trained on the same batches in the same order, once with dense attention and once for each ratio "
    "with Top-k attention, which keeps each query's ceil(ratio x visible) best keys, forward and backward; a seed "
    "draws the batches, and so pairs the trainings. All are then evaluated on the same haystacks by full attention and by "
    "exact Top-k at a sweep of k/N. A difference is Top-k-trained minus dense-trained at one k; its interval is Student's "
    "over paired seeds, and it is called shown where it differs from zero with Holm's correction over all k of its table."
)


def write_report(folder: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, topk-sft.md and figures; returns the report's path."""
    return write_page(folder, "topk-sft", TITLE, _blocks, study)


def _blocks(found: list[Start]) -> Iterator[Block]:
    yield Heading("What was found")
    yield Items([line for start in found for line in sentences(start)])
    yield Heading("How it was computed")
    yield Paragraph(HOW)
    for start in found:
        yield Heading(start.name)
        for task, title in enumerate(start.titles("curves")):
            yield Heading(title, 3)
            yield _table(start, task)
            name = f"accuracy-{_slug(start.name)}-{task}"
            yield _figure(start, task, name, f"{start.name}, {title}. {CAPTION}")


CAPTION = (
    "Accuracy by the share of keys kept at decoding, mean over seeds; dotted: full attention. Bars: Student's interval "
    "over seeds."
)


def sentences(start: Start) -> list[str]:
    """What a start's trainings show, each with its numbers."""
    return [
        *(_said_beside(start, one) for one in besides(start)),
        *(_said_moved(start, one) for one in moves(start)),
    ]


def _said_beside(start: Start, one: Beside) -> str:
    gap, at = one.tested.gap, one.at
    return (
        f"{start.name}, {one.title}: trained at {one.ratio}, decoding by Top-k at k = {one.cells[at]} scores "
        f"{one.ours[at]:.3f}, dense-trained {one.dense[at]:.3f}: {one.word} "
        f"({words(gap[at], 3)}, {one.tested.units}). Over the sweep it is better at {_at(one, one.better)}, worse at "
        f"{_at(one, one.worse)}; by full attention the difference is {words(one.full, 3)}."
    )


def _said_moved(start: Start, one: Moved) -> str:
    if one.readers:
        kept = (
            f"of the {one.readers} heads that read the answer most, {one.common:.1f} are the same, whose weight on "
            f"its key goes from {one.weights[0]:.2f} to {one.weights[1]:.2f}"
        )
    else:
        kept = "no answer stands in the haystacks as it is said, so that no head is seen to read it"
    return (
        f"{start.name}, {one.title}, trained {trained(one.arm)}: the weight on slot 0 goes from {one.before:.3f} to "
        f"{one.after:.3f} ({words(one.change, 3)}); {kept}."
    )


def trained(arm: str) -> str:
    """How a model was trained, in words."""
    return "densely" if arm == DENSE else f"at {arm}"


def words(interval: Interval, digits: int = 2) -> str:
    """A difference over seeds, with its interval where there are several."""
    value, low, high = interval
    if np.isnan(low):
        return f"{value:+.{digits}f}, one seed"
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _at(one: Beside, cells: Sequence[str]) -> str:
    """Those k, each with its difference."""
    gaps = (float(one.tested.gap.value[one.cells.index(cell)]) for cell in cells)
    told = (f"{cell} ({gap:+.3f})" for cell, gap in zip(cells, gaps, strict=True))
    return f"k = {', '.join(told)}" if cells else "no k"


def _table(start: Start, task: int) -> Table:
    """A row each k: accuracies, and each ratio's difference from dense training."""
    cells, before, questions = start.curve(BEFORE, task)
    arms = {arm: start.curve(arm, task)[1] for arm in start.trained}
    tested = {arm: gaps(arms[arm], arms[DENSE], questions) for arm in start.ratios if DENSE in arms}
    columns = ["decoded at k =", "before", *(f"trained {trained(arm)}" for arm in arms)]
    columns += [f"{arm} minus dense" for arm in tested]
    rows: list[list[str]] = []
    for n, cell in enumerate(cells):
        row = [cell, f"{score(before, questions)[n]:.3f}"]
        row += [f"{score(rates, questions)[n]:.3f}" for rates in arms.values()]
        row += [words(t.gap[n], 3) + (" *" if t.shown[n] else "") for t in tested.values()]
        rows.append(row)
    return Table(columns, rows)


def _figure(start: Start, task: int, name: str, caption: str) -> Drawn:
    """A line an attention in training, and the level of its full attention."""
    made: list[Series] = []
    for arm in [BEFORE, *start.trained]:
        cells, rates, questions = start.curve(arm, task)
        scores = rates @ questions / questions.sum()
        dense = float(scores[:, cells.index("dense")].mean()) if "dense" in cells else None
        sparse = [p for p, cell in enumerate(cells) if cell != "dense"]
        length = start.models[arm][0]["curves"][task]["length"]
        each = mean(scores[:, sparse].T, np.ones(len(scores)))
        shares = (parse_budget(cells[p]).at(length) / length for p in sparse)
        # An accuracy lies between nought and one, whatever few seeds leave open.
        ends = each.low.clip(0), each.high.clip(max=1)
        points = [tuple(map(float, point)) for point in zip(shares, each.value, *ends, strict=True)]
        label = "before" if arm == BEFORE else f"trained {trained(arm)}"
        made.append(Series(label, points, level=dense))
    return lines(name, made, caption, x="share of keys kept at decoding", y="accuracy", scale="log")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(name).name)
