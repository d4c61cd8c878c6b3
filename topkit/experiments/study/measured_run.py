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
from topkit.experiments.runs.fidelity_rows import LABELS
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.group_sums import GroupSums
from topkit.experiments.runs.parts import batches, paths_of


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


def absent(measured: Measured, described: Mapping[str, Any]) -> list[str]:
    """What was asked for and has no rows, a line each; of samples that have not begun nobody knows."""
    seen = GroupSums(["indexer", "budget", "sample", "layer"], [])
    for piece in measured.pieces:
        for table in batches([piece], labels=LABELS) if isinstance(piece, Path) else [piece]:
            seen.add(table)
    places = seen.table()
    there = {tuple(row[name] for name in seen.keys) for row in places.to_pylist()}
    samples = {place[2] for place in there}
    lines: list[str] = []
    for one in described["asked"]:
        layers = one.get("layers", ())
        for cell in one.get("cells", ()):
            wanted = [(cell["indexer"], cell["budget"], s, n) for s in samples for n in layers]
            left = sum(place not in there for place in wanted)
            if left:
                where = f"{left} of {len(wanted)} layers of samples"
                lines.append(f"{cell['indexer']} at k = {cell['budget']} lacks {where}; run the same command to go on")  # fmt: skip
    return list(dict.fromkeys(lines))
