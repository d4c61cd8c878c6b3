"""The folder of a measurement: whether it is one, and its rows."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from topkit.errors import InputError
from topkit.experiments.measure.measured import Measured
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.parts import paths_of


def is_measurement(run: Path) -> bool:
    """Whether a folder holds rows of `measure` and no answers."""
    fidelity, accuracy = (any((run / name).glob("*.parquet")) for name in ("fidelity", "accuracy"))
    return fidelity and not accuracy


def measured_of(run: Path) -> tuple[Measured, Mapping[str, Any]]:
    """The rows of a measurement's folder, and what run.json says. Raises: InputError where they are not as written."""
    described = require_intact(run)
    if not is_measurement(run):
        raise InputError(f"{run} holds no rows of a measurement; run `topkit measure` to its end")
    parts = paths_of(run / "fidelity")
    columns = pq.read_schema(parts[0]).names
    return Measured("measure" if "position" in columns else "reduced", parts), described
