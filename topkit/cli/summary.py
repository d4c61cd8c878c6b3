"""A run's accuracy as rows for the screen: each number with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.curves import Curve, load, name_of
from topkit.experiments.findings import Findings, said


def accuracy(run: Path, as_json: bool) -> list[dict[str, Any]]:
    """One row a task, length and cell; numbers for a program, or text for the eye."""
    return [row for curve in load(run) for row in (_numbers(curve) if as_json else _words(curve))]


def _numbers(curve: Curve) -> list[dict[str, Any]]:
    findings = Findings(curve)
    rows = []
    for place, cell in enumerate(curve.cells):
        value, low, high = findings.accuracy[place]
        row = {
            "task": curve.task,
            "length": curve.length,
            "sparse_from": curve.sparse_from,
            "indexer": None if cell.indexer is None else repr(cell.indexer),
            "k": None if cell.budget is None else str(cell.budget),
            "measure": curve.measure,
            "accuracy": value,
            "low": low,
            "high": high,
        }
        rows.append(row | {name: _finite(curve.mean(name)[place]) for name in curve.fidelity})
    return rows


def _words(curve: Curve) -> list[dict[str, Any]]:
    findings = Findings(curve)
    return [
        {
            "task": f"{curve.task} {curve.length}",
            "indexer": name_of(cell),
            "k": "" if cell.budget is None else str(cell.budget),
            "questions": int(curve.questions.sum()),
            "accuracy [95 %]": said(findings.accuracy[place]),
            "to full attention": findings.verdict(place),
            "recall": _short(curve.mean("recall")[place]),
            "mass": _short(curve.mean("mass")[place]),
        }
        for place, cell in enumerate(curve.cells)
    ]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ""
