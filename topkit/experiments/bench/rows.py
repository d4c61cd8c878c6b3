"""Rows of the long-form table: what was measured, on what, and what was expected of it."""

from __future__ import annotations

import csv
import io
import math
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import topkit
from topkit.errors import InputError
from topkit.experiments.bench.formulas import Bytes
from topkit.experiments.runs.parts import write_whole

COLUMNS: tuple[str, ...] = (
    "bench", "what", "implementation", "dtype", "batch", "length", "k", "unit", "median", "low",
    "high", "repeats", "bytes", "bandwidth", "copy_share", "roofline_share", "against", "ratio",
    "recall", "mass", "mass_ratio", "shared_mass_ratio", "useless", "limit", "within",
    "extrapolated", "note", "error", "device", "driver", "torch", "triton", "cuda", "topkit",
    "commit", "date",
)  # fmt: skip
KEY = ("bench", "what", "implementation", "device", "unit")
TIMES = ("median", "low", "high")
# Packages of others, by the names that their rows have.
RIVALS = {"flashinfer": "flashinfer-python", "xformers": "xformers"}
# Of these units more is better.
RATES = ("tokens/s", "GB/s")
Row = dict[str, Any]

# A selection that keeps less of the best possible mass is of no use, however fast.
LEAST_MASS_RATIO = 0.9


def spread(values: Sequence[float], unit: str) -> Row:
    """Median and quartiles of what was measured."""
    low, median, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
    return {"unit": unit, "median": median, "low": low, "high": high, "repeats": len(values)}


def shares(microseconds: float, moved: Bytes, copy: float) -> Row:
    """What bytes a time of so many us stands for, beside a copy of `copy` GB/s."""
    rate = moved.counted / microseconds / 1e3
    return {
        "bytes": int(moved.counted),
        "bandwidth": rate,
        "copy_share": rate / copy,
        "roofline_share": moved.ideal / microseconds / 1e3 / copy,
    }


def quality(found: Mapping[str, float]) -> Row:
    """What a selection is worth, and whether it is worth anything."""
    return {**found, "useless": bool(found["mass_ratio"] < LEAST_MASS_RATIO)}


def machine(device: torch.device) -> Row:
    """Where and with what it ran: no paths, no names of hosts."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda or "",
        "topkit": topkit.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV that a benchmark wrote.

    Raises: InputError when there is none, when it is another kind of table, and for rows that no
    benchmark writes.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    lacking = {"bench", "what", "device", "unit", *TIMES} - set(reader.fieldnames or ())
    if lacking:
        raise InputError(f"{path} is no table of benchmarks: it lacks {sorted(lacking)}")
    seen = set()
    for row in filter(timed, rows):
        named = ", ".join(str(row.get(name) or "") for name in KEY)
        for name in TIMES:
            if not _is_number(row[name]):
                raise InputError(f"{path}, {named}: {name} must be a number; got {row[name]!r}")
        if not float(row["low"]) <= float(row["median"]) <= float(row["high"]):
            raise InputError(f"{path}, {named}: low, median and high must ascend")
        if named in seen:
            raise InputError(f"{path} holds {named} twice")
        seen.add(named)
    if not seen:
        raise InputError(f"{path} holds no row that was timed")
    return rows


def timed(row: Mapping[str, Any]) -> bool:
    """Whether it was measured, and did not fail."""
    return row.get("median") not in (None, "")


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


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


def release(implementation: str) -> str | None:
    """The name and version of a rival's package, which no column holds."""
    package = RIVALS.get(implementation.partition(".")[0])
    return f"{package} {_version(package)}" if package else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    root = Path(topkit.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    return _said_by("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12")


def _said_by(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]
