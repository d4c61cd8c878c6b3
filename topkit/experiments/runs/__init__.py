"""A run's folder: cells, jobs, and tables in parts. Imports model and tasks."""

from __future__ import annotations

from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.cells import parse_cells
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.jobs import Runner
from topkit.experiments.runs.jobs import runner
from topkit.experiments.runs.parts import read_table
from topkit.experiments.runs.parts import write_part

__all__ = ["Cell", "Job", "Runner", "parse_cells", "read_table", "runner", "write_part"]
