"""A study: cells on tasks, to curves, statistics, findings and a report. Imports measure, evaluate and what is below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.study.curve import Curve
    from topkit.experiments.study.findings import Findings
    from topkit.experiments.study.report import write_report
    from topkit.experiments.study.study import run_study

__getattr__, __dir__ = lazily(
    __name__,
    {
        "run_study": "topkit.experiments.study.study",
        "write_report": "topkit.experiments.study.report",
        "Curve": "topkit.experiments.study.curves",
        "Findings": "topkit.experiments.study.findings",
    },
)

__all__ = ["Curve", "Findings", "run_study", "write_report"]
