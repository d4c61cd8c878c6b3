"""What recipes keep on a capture, unit by unit: by samples, or where there is one alone, by its layers."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.fidelity_rows import LABELS
from topkit.experiments.runs.group_sums import GroupSums
from topkit.experiments.runs.parts import batches, write_whole
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.measured_run import measured_of
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import recorded

pc: Any = pyarrow.compute
METRICS = ("mass", "recall", "bytes_read", "visible")
KEYS = ["indexer", "budget", "sample", "layer"]
SAMPLES, LAYERS = "samples", "layers"


@dataclass(frozen=True)
class Units:
    """The means of a capture's cells; unit: what was drawn, samples or layers."""

    curve: Curve
    unit: str


def condensed(run: Path, file: Path) -> pa.Table:
    """A row a cell, sample and layer: means over its heads and positions; kept in a file, which stands for the run."""
    if not (run / "fidelity").is_dir() and file.exists():
        return pq.read_table(file)
    measured, _ = measured_of(run)
    sums = GroupSums(KEYS, METRICS)
    for piece in measured.pieces:
        for table in batches([piece], labels=LABELS) if isinstance(piece, Path) else [piece]:
            own = (pc.field("level") == "head") & (pc.field("reference") == "head")
            sums.add(table.filter(own & ~pc.field("trivial")))
    means = sums.means("rows").sort_by([(name, "ascending") for name in KEYS])
    small = [pa.field(name, pa.float32()) for name in METRICS]
    places = [pa.field(name, pa.int32()) for name in (*KEYS[2:], "rows")]
    schema = pa.schema([pa.field(name, pa.string()) for name in KEYS[:2]] + places + small)
    table = means.select(schema.names).cast(schema)
    write_whole(file, lambda to: pq.write_table(table, to, compression="zstd"))
    return table


def units_of(table: pa.Table, about: Mapping[str, Any]) -> Units:
    """The cells of a capture's table on its units.

    Heads and layers of one sample hang together: where there are samples they are the units, and each counts once.
    Of one sample alone its layers are, which says nothing of other texts.
    """
    samples = np.unique(table["sample"].to_numpy())
    unit = SAMPLES if len(samples) > 1 else LAYERS
    own = table["sample" if unit == SAMPLES else "layer"].to_numpy()
    numbers, at = np.unique(own, return_inverse=True)
    pairs = list(zip(table["indexer"].to_pylist(), table["budget"].to_pylist(), strict=True))
    cells = {pair: n for n, pair in enumerate(dict.fromkeys(pairs))}
    shape = len(cells), len(numbers)
    place = np.array([cells[pair] for pair in pairs]) * len(numbers) + at
    count = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    means = {
        name: np.divide(
            np.bincount(place, table[name].to_numpy(), shape[0] * shape[1]).reshape(shape),
            count,
            out=np.full(shape, np.nan),
            where=count == count.max(),  # a unit that is not whole is none
        )
        for name in METRICS
    }
    none, curve_cells = (
        np.full(shape, np.nan),
        [Cell(recorded(i), parse_budget(k)) for i, k in cells],
    )
    curve = Curve(
        about["name"], about["tokens"], "", "", tuple(curve_cells), tuple(int(n) for n in numbers),
        np.ones(len(numbers)), none, none, {}, means, 1.0, {},
        tokens=np.fmax.reduce(means["visible"]),
    )  # fmt: skip
    return Units(curve, unit)
