"""A run's folder: plan, cells, jobs, and tables in parts. Imports model and tasks."""

from __future__ import annotations

from topkit.experiments.runs.cells import Cell, parse_cells
from topkit.experiments.runs.jobs import Job, Runner
from topkit.experiments.runs.parts import read_table, write_part
from topkit.experiments.runs.plan import Event, Plan, run
from topkit.experiments.runs.runners import runner

__all__ = [
    "Cell",
    "Event",
    "Job",
    "Plan",
    "Runner",
    "parse_cells",
    "read_table",
    "run",
    "runner",
    "write_part",
]
