"""Judging a selection: functions of queries, keys, values and what was chosen."""

# pyright: strict
from __future__ import annotations

from topkit.fidelity.metrics import METRICS, Metric, judge, judge_units, overlap
from topkit.fidelity.ties import floors, hits
from topkit.fidelity.truth import Truth, UnitTruth, truth, unit_truth

__all__ = [
    "METRICS",
    "Metric",
    "Truth",
    "UnitTruth",
    "floors",
    "hits",
    "judge",
    "judge_units",
    "overlap",
    "truth",
    "unit_truth",
]
