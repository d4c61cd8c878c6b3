"""Judging a selection: functions of queries, keys, values and what was chosen."""

# pyright: strict
from __future__ import annotations

from topkit.fidelity.answer_key import ANSWER_KEY, answer_key, of_units
from topkit.fidelity.metrics import METRICS, Metric, judge, judge_units, overlap
from topkit.fidelity.ties import floors, hits
from topkit.fidelity.truth import Truth, UnitTruth, truth, unit_truth

__all__ = [
    "ANSWER_KEY",
    "METRICS",
    "Metric",
    "Truth",
    "UnitTruth",
    "answer_key",
    "floors",
    "hits",
    "judge",
    "judge_units",
    "of_units",
    "overlap",
    "truth",
    "unit_truth",
]
