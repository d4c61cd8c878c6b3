"""A run kept by its means, or a study that trains, to five digits: half of the room, for what is committed.

    python tools/rounded.py RUN OUT

Of every mean 18 bits stay, which are within 4e-6 of it; of what a study found of its models, five digits. What stands
beside them (RUN/run.json, study.json, a law's split) is copied. RUN holds no rows.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topkit.experiments.evaluate.joined_means import CURVES, PART, keep_means, means_alone
from topkit.experiments.runs import run_file
from topkit.experiments.study.reading import SPLIT, STUDY
from topkit.experiments.train.arms import PARTS

BITS = 18
# Of the split, whose own curve is kept as it is: it is small.
BESIDE = (run_file.NAME, STUDY, SPLIT)


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    described = run_file.read(run)
    found = sorted((run / PARTS).glob("*.json"))
    if described is None or not (found or means_alone(run)):
        sys.exit(f"{run} is no run that is kept by its means alone, and no study that trains")
    if out.exists():
        sys.exit(f"{out} is there already; name a new folder")
    out.mkdir(parents=True)
    for name in BESIDE:
        if (run / name).is_dir():
            shutil.copytree(run / name, out / name)
        elif (run / name).exists():
            shutil.copy(run / name, out / name)
    for path in found:
        (out / PARTS).mkdir(exist_ok=True)
        text = json.dumps(in_digits(json.loads(path.read_text(encoding="utf-8"))))
        (out / PARTS / path.name).write_text(text + "\n", encoding="utf-8")
    if found:
        return
    tables = {
        name: rounded(pq.read_table(run / name / PART))
        for name in CURVES
        if (run / name / PART).exists()
    }
    keep_means(out, tables, described["id"])


def in_digits(value: Any) -> Any:
    """What JSON holds, its floats to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: in_digits(one) for name, one in value.items()}
    return [in_digits(one) for one in value] if isinstance(value, list) else value


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
