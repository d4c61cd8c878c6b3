"""Rows of the one table of benchmarks: what was measured, on what machine, and the limit for it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topkit.errors import InputError
from topkit.experiments.bench.formulas import Bytes
from topkit.experiments.runs.parts import write_whole

# ratio: times as long as `against`, its quartiles those of neighbours in time, where both were timed in
# turns (a CPU). speedup: times faster than `against`, of two medians of one run (a GPU).
COLUMNS: tuple[str, ...] = (
    "bench", "what", "implementation", "dtype", "batch", "length", "k", "unit", "median", "low",
    "high", "repeats", "bytes", "bandwidth", "copy_share", "roofline_share", "against", "ratio",
    "ratio_low", "ratio_high", "speedup", "recall", "mass", "mass_ratio", "shared_mass_ratio",
    "smollm2_mass", "smollm2_mass_ratio", "smollm2_shared_mass_ratio", "useless", "limit", "within", "extrapolated", "note", "error", "device", "cores", "driver",
    "python", "torch", "triton", "cuda", "topkit", "commit", "date",
)  # fmt: skip
KEY = ("bench", "what", "implementation", "device", "unit")
TIMES = ("median", "low", "high")
OURS = "topkit"
# Of these units more is better.
SHARE = "of the mass"
RATES = ("tokens/s", "GB/s", SHARE)
Row = dict[str, Any]

# A selection with a smaller share of the best possible mass is of no use, however fast.
LEAST_MASS_RATIO = 0.9


def spread(values: Sequence[float], unit: str) -> Row:
    """Median and quartiles of what was measured."""
    low, median, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
    return {"unit": unit, "median": median, "low": low, "high": high, "repeats": len(values)}


def ratios(ours: Sequence[float], others: Sequence[float]) -> Row:
    """Times as long, by neighbours in time: the machine was as busy for both."""
    turns = np.array(ours) / np.array(others)
    low, ratio, high = (float(x) for x in np.percentile(turns, (25, 50, 75)))
    return {"ratio": ratio, "ratio_low": low, "ratio_high": high}


def shares(microseconds: float, moved: Bytes, copy: float) -> Row:
    """What bytes a time of so many us stands for, beside a copy of `copy` GB/s."""
    rate = moved.counted / microseconds / 1e3
    return {
        "bytes": int(moved.counted),
        "bandwidth": rate,
        "copy_share": rate / copy,
        "roofline_share": moved.ideal / microseconds / 1e3 / copy,
    }


def quality(fidelity: Mapping[str, float]) -> Row:
    """The fidelity of a selection, and whether it is of any use: on SmolLM2's tensors where it was judged there."""
    ratio = fidelity.get("smollm2_mass_ratio", fidelity["mass_ratio"])
    return {**fidelity, "useless": bool(ratio < LEAST_MASS_RATIO)}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV that a benchmark wrote, also one of topkit 0.1, in today's columns.

    Raises: InputError when there is none, when it is another kind of table, and for rows that no
    benchmark writes.
    """
    rows = _read(path)
    seen = set()
    for row in filter(timed, rows):
        key = ", ".join(row[name] for name in KEY)
        for name in TIMES:
            if not _is_number(row[name]):
                raise InputError(f"{path}, {key}: {name} must be a number; got {row[name]!r}")
        if not float(row["low"]) <= float(row["median"]) <= float(row["high"]):
            raise InputError(f"{path}, {key}: low, median and high must ascend")
        if key in seen:
            raise InputError(f"{path} holds {key} twice")
        seen.add(key)
    if not seen:
        raise InputError(f"{path} holds no row that was timed")
    return rows


def _read(path: Path) -> list[dict[str, str]]:
    """Rows in today's columns, whatever they hold. Raises: InputError for another kind of table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    names = set(reader.fieldnames or ())
    lacking = {"bench", "what", "device", "unit", *TIMES} - names
    if lacking:
        raise InputError(f"{path} is no table of benchmarks: it lacks {sorted(lacking)}")
    return [_of_today(row, names) for row in rows]


def _of_today(row: Mapping[str, str | None], names: set[str]) -> dict[str, str]:
    """A row in today's columns, its figures as they stand in the file.

    0.1 wrote two tables: a CPU's without `implementation`, its limits numbers; a GPU's whose `ratio`
    is now `speedup`.
    """
    today = {name: row.get(name) or "" for name in COLUMNS}
    if "implementation" not in names:
        today["implementation"] = OURS
        if _is_number(today["limit"]):
            unit = "x" if today["ratio"] else today["unit"]
            today["limit"] = f"<= {float(today['limit']):g} {unit}"
    elif "speedup" not in names:
        today["speedup"], today["ratio"] = today["ratio"], ""
    return today


def timed(row: Mapping[str, Any]) -> bool:
    """Whether it was measured, and did not fail."""
    return row.get("median") not in (None, "")


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def rows_of_others(path: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV that a run of some benchmarks leaves as they are: none where all run, or there is no file.

    Raises: InputError for what stands there and is no table of benchmarks.
    """
    if not names or not path.exists():
        return []
    return [row for row in _read(path) if row["bench"] not in names]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; numbers in four digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: shown(value) for name, value in row.items()} for row in rows)
    write_whole(path, lambda to: to.write_text(text.getvalue(), encoding="utf-8"))


def shown(value: Any) -> Any:
    """A float in four digits, never as a power of ten; nothing for None."""
    if isinstance(value, float):
        return np.format_float_positional(value, 4, unique=False, fractional=False, trim="-")
    return "" if value is None else value
