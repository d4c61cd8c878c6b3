"""The study topk-sft: whether training with Top-k attention unlocks decoding by Top-k, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.study.blocks import Block, Drawn, Heading, Items, Paragraph, Table
from topkit.experiments.study.lines import Series, lines
from topkit.experiments.study.stats import Interval, mean
from topkit.experiments.train.arms import BEFORE, DENSE
from topkit.experiments.train.arms_page import write_page
from topkit.experiments.train.found import Start, gaps
from topkit.experiments.train.head_measures import READING, SINK
from topkit.indexers.budget import parse_budget

TITLE = "Does training with Top-k attention unlock Top-k decoding?"
HOW = (
    "Each start is trained on the same batches in the same order, once with dense attention and once for each ratio "
    "with Top-k attention, which keeps each query's ceil(ratio x visible) best keys, forward and backward; a seed "
    "draws the batches, and so pairs the trainings. All are then evaluated on the same haystacks by full attention and by "
    "exact Top-k at a sweep of k/N. A difference is Top-k-trained minus dense-trained at one k; its interval is Student's "
    "over paired seeds, and it is called shown where it differs from zero with Holm's correction over all k of its table."
)
# Heads that are called reading: those with the most weight on the answer's own key, before training.
READERS = 8


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
    lines: list[str] = []
    for task, title in enumerate(start.titles("curves")):
        for ratio in start.ratios:
            lines += _of_ratio(start, task, title, ratio)
    for task, title in enumerate(start.titles("heads")):
        lines += [_moved(start, task, title, arm) for arm in start.trained]
    return lines


def _of_ratio(start: Start, task: int, title: str, ratio: str) -> Iterator[str]:
    cells, ours, questions = start.curve(ratio, task)
    _, dense, _ = start.curve(DENSE, task)
    tested = gaps(ours, dense, questions)
    sparse = [n for n, cell in enumerate(cells) if cell != "dense"]
    better = [n for n in sparse if tested.shown[n] and tested.gap.value[n] > 0]
    worse = [n for n in sparse if tested.shown[n] and tested.gap.value[n] < 0]
    at = cells.index(ratio) if ratio in cells else sparse[0]
    verdict = "better" if at in better else "worse" if at in worse else "not shown to differ"
    yield (
        f"{start.name}, {title}: trained at {ratio}, decoding by Top-k at k = {cells[at]} scores "
        f"{_score(ours, questions)[at]:.2f}, dense-trained {_score(dense, questions)[at]:.2f}: {verdict} "
        f"({_words(tested.gap[at])}, {tested.units}). Over the sweep it is better at {_at(cells, better)}, worse at "
        f"{_at(cells, worse)}; by full attention the difference is {_words(tested.gap[cells.index('dense')])}."
    )


def _moved(start: Start, task: int, title: str, arm: str) -> str:
    """Whether the sink and the reading heads move."""
    before, after = (start.heads(a, task, SINK).mean((1, 2, 3)) for a in (BEFORE, arm))
    change = mean((after - before[0])[None], np.ones(len(after)))[0]
    read = [np.nanmean(start.heads(a, task, READING), axis=1) for a in (BEFORE, arm)]
    if np.isnan(read[0]).all():
        kept = "no answer stands in the haystacks as it is said, so that no head is seen to read it"
    else:
        first = _readers(read[0][0])
        common = [len(first & _readers(one)) for one in read[1]]
        weights = [
            float(one.flatten()[sorted(first)].mean()) for one in (read[0][0], read[1].mean(0))
        ]
        kept = (
            f"of the {len(first)} heads that read the answer most, {np.mean(common):.1f} are the same, whose weight on "
            f"its key goes from {weights[0]:.2f} to {weights[1]:.2f}"
        )
    return (
        f"{start.name}, {title}, trained {_trained(arm)}: the weight on slot 0 goes from {before[0]:.3f} to "
        f"{after.mean():.3f} ({_words(change, 3)}); {kept}."
    )


def _readers(weights: Any) -> set[int]:
    order = np.argsort(-np.nan_to_num(weights.flatten(), nan=-1.0), kind="stable")
    return set(order[: min(READERS, len(order))].tolist())


def _trained(arm: str) -> str:
    return "densely" if arm == DENSE else f"at {arm}"


def _words(interval: Interval, digits: int = 2) -> str:
    value, low, high = interval
    if np.isnan(low):
        return f"{value:+.{digits}f}, one seed"
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _at(cells: list[str], places: list[int]) -> str:
    return "k = " + ", ".join(cells[n] for n in places) if places else "no k"


def _score(rates: Any, questions: Any) -> Any:
    return (rates @ questions / questions.sum()).mean(0)


def _table(start: Start, task: int) -> Table:
    """A row each k: accuracies, and each ratio's difference from dense training."""
    cells, before, questions = start.curve(BEFORE, task)
    arms = {arm: start.curve(arm, task)[1] for arm in start.trained}
    tested = {arm: gaps(arms[arm], arms[DENSE], questions) for arm in start.ratios if DENSE in arms}
    columns = ["decoded at k =", "before", *(f"trained {_trained(arm)}" for arm in arms)]
    columns += [f"{arm} minus dense" for arm in tested]
    rows: list[list[str]] = []
    for n, cell in enumerate(cells):
        row = [cell, f"{_score(before, questions)[n]:.3f}"]
        row += [f"{_score(rates, questions)[n]:.3f}" for rates in arms.values()]
        row += [_words(t.gap[n], 3) + (" *" if t.shown[n] else "") for t in tested.values()]
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
        points = [
            tuple(map(float, point))
            for point in zip(shares, each.value, each.low, each.high, strict=True)
        ]
        label = "before" if arm == BEFORE else f"trained {_trained(arm)}"
        made.append(Series(label, points, level=dense))
    return lines(name, made, caption, x="share of keys kept at decoding", y="accuracy", scale="log")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(name).name)
