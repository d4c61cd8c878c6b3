"""The study entropy: of each head's attention, before and after training, and whether it tells what the head loses at k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.study.blocks import Block, Drawn, Heading, Items, Paragraph, Table
from topkit.experiments.study.lines import Series, lines
from topkit.experiments.study.ordering import Ordering, ordering
from topkit.experiments.study.stats import Interval, mean
from topkit.experiments.train.arms import BEFORE, DENSE
from topkit.experiments.train.arms_page import write_page
from topkit.experiments.train.found import Start
from topkit.experiments.train.head_measures import ENTROPY, RELATIVE

TITLE = "Attention's entropy, before and after training with Top-k attention"
HOW = (
    "A head's entropy at a step is -sum w ln w over all keys that the step sees, in nats, and as a share of ln n, the "
    "entropy of n equal weights; both are means over the steps of question and answer, of the haystacks of a task, by full "
    "attention. A head's loss at k is 1 minus the weight that its Top-k holds. Changes are paired by seed, with "
    "Student's interval over seeds. The correlation is Spearman's over heads; its percentile interval draws heads and "
    "haystacks."
)
BY_LAYER = "H / ln n by layer, mean over heads; bars: the least and the greatest head."
LOST = "Each head before training: what it loses at the smallest k against its entropy."
MASS = "mass at "


def write_report(folder: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, entropy.md and figures; returns the report's path."""
    return write_page(folder, "entropy", TITLE, _blocks, study)


def _blocks(found: list[Start]) -> Iterator[Block]:
    yield Heading("What was found")
    yield Items([line for start in found for line in sentences(start)])
    yield Heading("How it was computed")
    yield Paragraph(HOW)
    for start in found:
        for task, title in enumerate(start.titles("heads")):
            yield Heading(f"{start.name}, {title}")
            yield _changes(start, task)
            yield Heading("What a head loses at k, by its entropy", 3)
            yield _predictions(start, task)
            yield Heading("Every head", 3)
            yield _every_head(start, task)
            name = f"entropy-{Path(start.name).name}-{task}"
            yield _by_layer(start, task, name, f"{start.name}, {title}. {BY_LAYER}")
            yield _lost(start, task, f"{name}-lost", f"{start.name}, {title}. {LOST}")


def sentences(start: Start) -> list[str]:
    """What the entropies of a start show, each with its numbers."""
    lines: list[str] = []
    for task, title in enumerate(start.titles("heads")):
        where = f"{start.name}, {title}"
        before = float(start.heads(BEFORE, task, ENTROPY).mean())
        for arm in start.trained:
            change = change_of(start, task, ENTROPY, arm, BEFORE)
            what = "densely" if arm == DENSE else f"at {arm}"
            line = (
                f"{where}: trained {what}, entropy goes from {before:.2f} nats by {words(change)}"
            )
            if arm != DENSE and DENSE in start.models:
                beside = change_of(start, task, ENTROPY, arm, DENSE)
                line += f", beside dense training by {words(beside)}: {verdict(beside)}"
            lines.append(f"{line}.")
        for arm in (BEFORE, *start.ratios):
            for loss in losses(start, task)[:1]:
                found = predicts(start, task, arm, loss)
                what = "before training" if arm == BEFORE else f"trained at {arm}"
                lines.append(
                    f"{where}, {what}: over {found.units} heads entropy orders what is lost at k = "
                    f"{loss.removeprefix(MASS)} with a rank correlation of {words(found.recall)}, H / ln n with "
                    f"{words(found.mass)}."
                )
    return lines


def predicts(start: Start, task: int, arm: str, loss: str) -> Ordering:
    """Spearman's correlation over heads of entropy (`recall`) and of H / ln n (`mass`) with the loss at k."""

    def by_head(measure: str) -> Any:
        # Seeds of an attention are averaged; haystacks are drawn.
        values = start.heads(arm, task, measure).mean(0)
        return values.reshape(len(values), -1).T

    lost = 1 - by_head(loss)
    return ordering(by_head(ENTROPY), by_head(RELATIVE), lost, np.ones(lost.shape[1]))


def losses(start: Start, task: int) -> list[str]:
    """The measures of what heads keep at each k, the smallest first."""
    return [name for name in start.measures(task) if name.startswith(MASS)]


def change_of(start: Start, task: int, measure: str, arm: str, base: str) -> Interval:
    """The mean over heads after one training minus after another, or before any."""
    after, before = (start.heads(one, task, measure).mean((1, 2, 3)) for one in (arm, base))
    return mean((after - before)[None], np.ones(len(after)))[0]


def verdict(change: Interval) -> str:
    """A change of entropy in a word."""
    value, low, high = change
    if np.isnan(low):
        return "one seed shows nothing of another"
    return "lower" if high < 0 else "higher" if low > 0 else f"not shown to differ ({value:+.2f})"


def words(interval: Interval) -> str:
    """A number with its sign and interval; of one seed the number alone."""
    value, low, high = interval
    return f"{value:+.2f}" if np.isnan(low) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _changes(start: Start, task: int) -> Table:
    """A row an attention: entropies over all heads, and their change, and by layer."""
    layers = start.heads(BEFORE, task, ENTROPY).shape[2]
    rows: list[list[str]] = []
    for arm in start.models:
        nats, share = (start.heads(arm, task, name) for name in (ENTROPY, RELATIVE))
        row = ["before" if arm == BEFORE else arm, f"{nats.mean():.2f}", f"{share.mean():.3f}"]
        row.append("" if arm == BEFORE else words(change_of(start, task, ENTROPY, arm, BEFORE)))
        row.append(
            "" if arm in (BEFORE, DENSE) or DENSE not in start.models
            else words(change_of(start, task, ENTROPY, arm, DENSE))
        )  # fmt: skip
        rows.append([*row, *(f"{x:.2f}" for x in nats.mean((0, 1, 3)))])
    heads = ["trained", "nats", "H / ln n", "minus before", "minus dense"]
    return Table([*heads, *(f"layer {n}" for n in range(layers))], rows)


def _predictions(start: Start, task: int) -> Table:
    """A row an attention and k: the mean loss, and the rank correlations."""
    rows: list[list[str]] = []
    for arm in start.models:
        for loss in losses(start, task):
            found = predicts(start, task, arm, loss)
            lost = 1 - float(start.heads(arm, task, loss).mean())
            what = [arm, loss.removeprefix(MASS), f"{lost:.3f}"]
            rows.append([*what, words(found.recall), words(found.mass)])
    return Table(["trained", "k", "lost, mean", "by entropy", "by H / ln n"], rows)


def _every_head(start: Start, task: int) -> Table:
    """Entropy in nats, and as a share of ln n, of each head: before and after each training."""
    columns = ["layer", "head"]
    columns += [f"{arm}: {name}" for arm in start.models for name in ("nats", "H / ln n")]
    means = [start.heads(arm, task, name).mean((0, 1)) for arm in start.models for name in (ENTROPY, RELATIVE)]  # fmt: skip
    layers, heads = means[0].shape
    rows = [
        [str(layer), str(head), *(f"{x[layer, head]:.3f}" for x in means)]
        for layer in range(layers)
        for head in range(heads)
    ]
    return Table(columns, rows)


def _by_layer(start: Start, task: int, name: str, caption: str) -> Drawn:
    made: list[Series] = []
    for arm in start.models:
        share = start.heads(arm, task, RELATIVE).mean((0, 1))
        ends = share.mean(1), share.min(1), share.max(1)
        points = [
            (float(layer), *map(float, point))
            for layer, point in enumerate(zip(*ends, strict=True))
        ]
        made.append(Series("before" if arm == BEFORE else f"trained {arm}", points))
    return lines(name, made, caption, x="layer", y="H / ln n")


def _lost(start: Start, task: int, name: str, caption: str) -> Drawn:
    loss = losses(start, task)[0]
    x, y = (start.heads(BEFORE, task, name).mean((0, 1)).flatten() for name in (ENTROPY, loss))
    points = [(float(entropy), 1 - float(kept)) for entropy, kept in zip(x, y, strict=True)]
    lost = f"lost at k = {loss.removeprefix(MASS)}"
    return lines(name, [Series("a head", points)], caption, x="entropy, nats", y=lost, points=True)
