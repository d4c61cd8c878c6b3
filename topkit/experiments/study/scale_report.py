"""The report of the study scale: a row and a line a model, by its number of parameters."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study import stats
from topkit.experiments.study.block_page import write_page
from topkit.experiments.study.blocks import Block, Drawn, Heading, Items, Paragraph, Table
from topkit.experiments.study.citation import citation
from topkit.experiments.study.course import folders
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.lines import Series, lines
from topkit.experiments.study.reading import RUNS, reading
from topkit.experiments.study.scale import PARAMETERS
from topkit.experiments.study.stats import Array

TITLE = "Top-k at several sizes of one recipe"
NAME = "scale"
# A head reads the answer that gives its key so much of its weight, on average over the answer's steps.
READS = 0.1
HOW = (
    "Exact Top-k at each k on the same haystacks for all models. k for half: where exact Top-k keeps half of what full "
    "attention scores, between two k by a line in log k. A reading head gives the answer's key at least "
    f"{READS:g} of its weight, over the steps of the answer at the largest k. ws for half: the weight that the "
    "reading heads give to the answer's key, renormalised over what was kept, at which half of the answer's steps go "
    "right, between two k by a line. Intervals are of haystacks, at 95 %."
)
NO_KEYS = (
    "The answer key's weight was not recorded (columns w and ws of fidelity rows), so reading heads and the law's "
    "constant are left out."
)
CAPTION = "Accuracy of exact Top-k against k, by number of parameters, with 95 % intervals; dashed: full attention."


@dataclass(frozen=True)
class Size:
    """A model: its curve, its number of parameters, its reading heads and the weight at which half goes right."""

    name: str
    parameters: int
    curve: Curve
    heads: int | None = None
    constant: float = nan

    @property
    def exact(self) -> list[int]:
        """The places of exact Top-k, by k."""
        places = [p for p, cell in enumerate(self.curve.cells) if cell.indexer == EXACT]
        return sorted(places, key=lambda p: self.curve.kept[p])

    @property
    def scores(self) -> stats.Interval:
        return stats.accuracy(self.curve.rates, self.curve.trials)

    @property
    def dense(self) -> float:
        place = self.curve.place(None)
        return nan if place is None else float(self.scores.value[place])

    @property
    def half(self) -> float:
        """The k at which exact Top-k keeps half of the dense score; NaN where no two k are on both sides."""
        k = np.log2(self.curve.kept[self.exact])
        return float(2 ** crossing(k, self.scores.value[self.exact], self.dense / 2))


def crossing(x: Array, y: Array, level: float) -> float:
    """Where y first rises through a level, by a line between two points; NaN where it does not."""
    for a, b in zip(range(len(x) - 1), range(1, len(x)), strict=True):
        if y[a] < level <= y[b]:
            return float(x[a] + (level - y[a]) / (y[b] - y[a]) * (x[b] - x[a]))
    return nan


def write_report(folder: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, scale.md and figures into a study's folder; returns the report's path."""
    read = reading([folder], study)
    sizes = _sizes(folder, study, read.curves)
    notes = [*read.origin, *(f"Not finished: {line}" for line in read.absent)]
    cite = citation(read.described, [folder])
    return write_page(folder, NAME, TITLE, list(blocks(sizes, study, notes)), cite)


def _sizes(folder: Path, study: Mapping[str, Any], curves: Sequence[Curve]) -> list[Size]:
    """The models' curves, the smallest first."""
    counts: Mapping[str, int] = study[PARAMETERS]
    names = dict(zip(folders(list(counts)), counts, strict=True))
    made: list[Size] = []
    for curve in curves:
        model = names.get(curve.model) or next(iter(counts))
        runs = [folder / one["folder"] for one in study.get(RUNS, ()) if one["model"] == model]
        places = [run for run in runs or [folder] if (run / run_file.NAME).exists()]
        tables = [condensed(run)[1].to_pylist() for run in places]
        made.append(_with_heads(Size(model, counts[model], curve), [r for t in tables for r in t]))
    return sorted(made, key=lambda one: (one.curve.task, one.curve.length, one.parameters, one.name))  # fmt: skip


def _with_heads(size: Size, rows: Sequence[Mapping[str, Any]]) -> Size:
    """With what the rows of heads say of the answer's key, where they say it."""
    curve = size.curve
    own = [row for row in rows if (row["task"], row["length"]) == (curve.task, curve.length)]
    exact = {p: curve.cells[p] for p in size.exact}
    by_cell = {p: [row for row in own if _is(row, cell) and row.get("w") is not None] for p, cell in exact.items()}  # fmt: skip
    if not size.exact or not by_cell[size.exact[-1]]:
        return size
    readers = {_head(row) for row in by_cell[size.exact[-1]] if row["w"] >= READS}
    if not readers:
        return replace(size, heads=0)
    weights = [_mean([row["ws"] for row in by_cell[p] if _head(row) in readers]) for p in size.exact]  # fmt: skip
    # Answers' steps that go right, over all haystacks.
    right = curve.token_rates[size.exact] @ curve.questions / curve.questions.sum()
    return replace(size, heads=len(readers), constant=crossing(np.array(weights), right, 0.5))


def _is(row: Mapping[str, Any], cell: Cell) -> bool:
    return (row["indexer"], row["budget"]) == tuple(cell.columns.values())


def _head(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["layer"], row["head"]


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else nan


def blocks(sizes: Sequence[Size], study: Mapping[str, Any], notes: Sequence[str]) -> Iterator[Block]:  # fmt: skip
    """The page's blocks."""
    yield Paragraph(str(study.get("about", "")))
    settings = list(dict.fromkeys((one.curve.task, one.curve.length) for one in sizes))
    yield Heading("What was found")
    for setting in settings:
        yield Items(sentences([one for one in sizes if (one.curve.task, one.curve.length) == setting]))  # fmt: skip
    if all(one.heads is None for one in sizes):
        yield Paragraph(NO_KEYS)
    yield Items(list(study.get("absent", ())))
    yield Heading("How to read it")
    yield Paragraph(HOW)
    for number, (task, length) in enumerate(settings):
        here = [one for one in sizes if (one.curve.task, one.curve.length) == (task, length)]
        yield Heading(f"{task}, {length:,} tokens")
        yield _table(here)
        yield _figure(here, f"scale-{number + 1}", f"{task}, {length:,} tokens. {CAPTION}")
    yield Heading("The run")
    yield Items(notes)


def sentences(sizes: Sequence[Size]) -> list[str]:
    """What one task says of the sizes."""
    lines: list[str] = []
    for one in sizes:
        half = "no k that was run has" if np.isnan(one.half) else f"k = {one.half:.3g} has"
        lines.append(
            f"{one.curve.task}: {one.name}, {one.parameters / 1e6:.3g} M parameters, scores {one.dense:.2f} with full "
            f"attention; {half} half of that."
        )
    known = [one for one in sizes if np.isfinite(one.half)]
    if len({one.parameters for one in known}) > 1:
        small, large = known[0], known[-1]
        word = "fewer" if large.half < small.half else "more"
        lines.append(
            f"{sizes[0].curve.task}: {large.parameters / small.parameters:.3g} times the parameters need "
            f"{large.half / small.half:.2f} times the keys for half of the score: {word}."
        )
    by_size: dict[int, list[float]] = {}
    for one in known:
        by_size.setdefault(one.parameters, []).append(one.half)
    for parameters, halves in by_size.items():
        if len(halves) > 1:
            lines.append(
                f"{len(halves)} seeds at {parameters / 1e6:.3g} M: half of the score at k = {min(halves):.3g} to "
                f"{max(halves):.3g}."
            )
    constants = [one for one in sizes if np.isfinite(one.constant)]
    if constants:
        shown = ", ".join(f"{one.constant:.2f} ({one.name})" for one in constants)
        lines.append(f"Half of the answer's steps go right at ws = {shown}.")
    return lines


def _table(sizes: Sequence[Size]) -> Table:
    ks = list(dict.fromkeys(str(one.curve.cells[p].budget) for one in sizes for p in one.exact))
    columns = ["model", "parameters", "full attention", *(f"k = {k}" for k in ks), "k for half", "reading heads", "ws for half"]  # fmt: skip
    return Table(columns, [_row(one, ks) for one in sizes])


def _row(one: Size, ks: Sequence[str]) -> list[str]:
    at = {str(one.curve.cells[p].budget): p for p in one.exact}
    scores = one.scores
    shown = [
        f"{scores.value[at[k]]:.2f} [{scores.low[at[k]]:.2f}, {scores.high[at[k]]:.2f}]" if k in at else ""
        for k in ks
    ]  # fmt: skip
    half = "" if np.isnan(one.half) else f"{one.half:.3g}"
    constant = "" if np.isnan(one.constant) else f"{one.constant:.2f}"
    heads = "" if one.heads is None else str(one.heads)
    return [f"`{one.name}`", f"{one.parameters / 1e6:.3g} M", f"{one.dense:.2f}", *shown, half, heads, constant]  # fmt: skip


def _figure(sizes: Sequence[Size], name: str, caption: str) -> Drawn:
    """A line a model, and the level of its full attention."""
    made: list[Series] = []
    for one in sizes:
        scores, kept = one.scores, one.curve.kept
        points = [
            tuple(map(float, (kept[p], scores.value[p], scores.low[p], scores.high[p])))
            for p in one.exact
        ]
        made.append(Series(f"{one.parameters / 1e6:.3g} M, {one.name}", points, level=one.dense))
    return lines(name, made, caption, x="keys kept by exact Top-k", y="accuracy", scale="log")
