"""A run kept by its means, to five digits: half of the room, for what is committed.

    python tools/rounded.py RUN OUT

Of every number 18 bits stay, which are within 4e-6 of it; what stands beside the means (RUN/run.json, study.json, a
law's split) is copied. RUN holds no rows.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topkit.experiments.evaluate.joined_means import CURVES, PART, keep_means, means_alone
from topkit.experiments.runs import run_file
from topkit.experiments.study.reading import SPLIT, STUDY

BITS = 18
# Of the split, whose own curve is kept as it is: it is small.
BESIDE = (run_file.NAME, STUDY, SPLIT)


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    described = run_file.read(run)
    if described is None or not means_alone(run):
        sys.exit(f"{run} is no run that is kept by its means alone")
    if out.exists():
        sys.exit(f"{out} is there already; name a new folder")
    out.mkdir(parents=True)
    for name in BESIDE:
        if (run / name).is_dir():
            shutil.copytree(run / name, out / name)
        elif (run / name).exists():
            shutil.copy(run / name, out / name)
    tables = {
        name: rounded(pq.read_table(run / name / PART))
        for name in CURVES
        if (run / name / PART).exists()
    }
    keep_means(out, tables, described["id"])


def rounded(table: pa.Table) -> pa.Table:
    """A table whose floats have so many bits; counts, names and what is missing stay."""
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            values = table[field.name].to_numpy()
            missing = table[field.name].is_null().to_numpy()
            column = pa.array(to_bits(values), field.type, mask=missing)
            table = table.set_column(place, field, column)
    return table


def to_bits(values: np.ndarray) -> np.ndarray:
    """Numbers rounded to so many bits; those that are not finite as they are."""
    parts, powers = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(parts, BITS)), powers - BITS)


if __name__ == "__main__":
    main()
