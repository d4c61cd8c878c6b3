"""What a law predicts of a run and what was scored, a point a cell and task."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import DENSE, Cell
from topkit.experiments.study.kinds import family_of, kind_of, manner_of
from topkit.experiments.study.law import Law
from topkit.experiments.study.law_rows import FORMS, PLACE, Reading, law_table
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import recorded

# What the law is held against, each with the sign by which more is better.
RIVALS = {"recall": 1, "mass": 1, "top1": 1, "output_error": -1}
_LAW = dict(zip(FORMS, ("law", "law_shadow"), strict=True))


@dataclass(frozen=True)
class Point:
    """A cell on a task at a length: what it scored, what is predicted by each form, and what was observed.

    dense: what full attention scored; noise: the standard error, over haystacks, of score minus prediction, by form.
    """

    task: str
    length: int
    cell: Cell
    haystacks: int
    scored: float
    dense: float
    predicted: Mapping[str, float]
    noise: Mapping[str, float]
    metrics: Mapping[str, float]

    @property
    def family(self) -> str:
        """Of an oracle, its manner of loss."""
        return manner_of(self.cell) if kind_of(self.cell) == "oracle" else family_of(self.cell)


@dataclass(frozen=True)
class Predictions:
    """A model's points, and the heads that were found to read its answers.

    missed: of each haystack with answers that had a step whose key all reading heads missed, over all cells, what
    these scored on average and how many they are; others: the same of answers without such a step.
    """

    model: str
    reading: Reading
    points: Sequence[Point]
    missed: Sequence[tuple[float, int]] = ()
    others: Sequence[tuple[float, int]] = ()


def predictions(model: str, run: Path, split: Path, law: Law) -> Predictions:
    """The points of a run, whose reading heads a split of haystacks of its own shows.

    Controls, and cells that leave nothing to choose, are no points: they would be predicted by anything. Of a run that was
    still written to, a haystack counts that both of its kept tables have.
    Raises: InputError for a run without answers' keys, and one kept of another law.
    """
    table, reading = law_table(run, split, law)
    by_place = {tuple(row[name] for name in PLACE): row for row in table.to_pylist()}
    scores = condensed(run)[0].to_pylist()
    dense = {_haystack(row): row["score"] for row in scores if row["indexer"] == DENSE}
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for row in scores:
        found = by_place.get(tuple(row[name] for name in PLACE))
        if found is not None and not row["trivial"] and _haystack(row) in dense:
            key = row["task"], row["length"], row["indexer"], row["budget"]
            groups.setdefault(key, []).append((row, found))
    points = [_point(key, rows, dense) for key, rows in groups.items()]
    kept = [p for p in points if kind_of(p.cell) in ("real", "oracle")]
    judged = [(row, by_place.get(tuple(row[name] for name in PLACE))) for row in scores]
    both = [(row, found) for row, found in judged if found is not None]
    missed = [(_haystack(row), _missed_sum(found), found["missed"]) for row, found in both]
    others = [
        (_haystack(row), row["score"] * row["questions"] - _missed_sum(found), row["questions"] - found["missed"])
        for row, found in both
    ]  # fmt: skip
    return Predictions(model, reading, kept, _by_haystack(missed), _by_haystack(others))


def _missed_sum(found: Mapping[str, Any]) -> float:
    """What the answers of a cell and haystack score together that had a missed key."""
    return found["missed_score"] * found["missed"] if found["missed"] else 0.0


def _by_haystack(rows: Sequence[tuple[tuple[Any, ...], float, int]]) -> list[tuple[float, int]]:
    """Of each haystack the mean score of some answers, and how many they are, from sums over each of its cells."""
    found: dict[tuple[Any, ...], list[tuple[float, int]]] = {}
    for haystack, total, count in rows:
        if count:
            found.setdefault(haystack, []).append((total, count))
    sums = [(sum(t for t, _ in own), sum(n for _, n in own)) for own in found.values()]
    return [(total / count, count) for total, count in sums]


def _haystack(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["length"], row["sparse_from"], row["haystack"]


def _point(
    key: tuple[Any, ...],
    rows: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    dense: Mapping[tuple[Any, ...], float],
) -> Point:
    task, length, indexer, budget = key
    share = np.array([row["questions"] for row, _ in rows], dtype=float)
    share = share / share.sum()
    scored = np.array([row["score"] for row, _ in rows], dtype=float)
    ceiling = np.array([dense[_haystack(row)] for row, _ in rows], dtype=float) @ share
    predicted, noise = dict[str, float](), dict[str, float]()
    for form, column in _LAW.items():
        chances = np.array([found[column] for _, found in rows], dtype=float)
        if np.isfinite(chances).all():
            predicted[form] = float(ceiling * (chances @ share))
            noise[form] = _error(scored - ceiling * chances, share)
    metrics = {name: _mean([row.get(name) for row, _ in rows], share) for name in RIVALS}
    metrics["ws"] = _mean([found["ws"] for _, found in rows], share)
    cell = Cell(recorded(indexer), parse_budget(budget))
    mean = float(scored @ share)
    return Point(task, length, cell, len(rows), mean, float(ceiling), predicted, noise, metrics)


def _error(gaps: Any, share: Any) -> float:
    """The standard error of a weighted mean."""
    count = len(gaps)
    off = (gaps - gaps @ share) * share
    return float(np.sqrt(count / max(count - 1, 1) * (off**2).sum()))


def _mean(values: Sequence[float | None], share: Any) -> float:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    return float(numbers @ share)
