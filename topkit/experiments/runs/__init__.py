"""A run's folder: cells, jobs, and tables in parts. Imports model and tasks."""

from __future__ import annotations

from topkit.experiments.runs.cells import Cell, parse_cells
from topkit.experiments.runs.jobs import Job, Runner, runner
from topkit.experiments.runs.parts import read_table, write_part

__all__ = ["Cell", "Job", "Runner", "parse_cells", "read_table", "runner", "write_part"]
