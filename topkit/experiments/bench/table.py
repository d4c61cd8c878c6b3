"""Rows of benchmarks as a table for the eye: a median never without its quartiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topkit.experiments.bench.rows import shown


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One line a row, of a run or of a CSV, without the columns that none of them fills.

    An asterisk stands where the selection is of no use, however fast.
    """
    lines = [_line(row) for row in rows]
    filled = {name for line in lines for name, text in line.items() if text}
    return [{name: text for name, text in line.items() if name in filled} for line in lines]


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    against = row["against"] or ""
    return {
        "what": f"{row['bench']}: {row['what']}{'*' if str(row['useless']) == 'True' else ''}",
        "by": str(row["implementation"]),
        "median [quartiles]": _quartiles(row, ("median", "low", "high"), f" {row['unit']}"),
        "GB/s (of copy)": f"{_digits(row['bandwidth'], 0)} ({_digits(row['copy_share'], 2)})"
        if _filled(row["copy_share"])
        else "",
        "of roofline": _digits(row["roofline_share"], 2),
        "times as long as [quartiles]": _quartiles(
            row, ("ratio", "ratio_low", "ratio_high"), f" x {against}"
        ),
        "times faster than": f"{_digits(row['speedup'], 2)} x {against}"
        if _filled(row["speedup"])
        else "",
        "recall": _digits(row["recall"], 2),
        "mass": _digits(row["mass"], 2),
        "mass ratio (to shared)": f"{_digits(row['mass_ratio'], 2)} "
        f"({_digits(row['shared_mass_ratio'], 2)})"
        if _filled(row["mass_ratio"])
        else "",
        "SmolLM2: mass": _digits(row["smollm2_mass"], 2),
        "SmolLM2: mass ratio (to shared)": f"{_digits(row['smollm2_mass_ratio'], 2)} "
        f"({_digits(row['smollm2_shared_mass_ratio'], 2)})"
        if _filled(row["smollm2_mass_ratio"])
        else "",
        "to reach": f"{row['limit']}{' (missed)' if str(row['within']) == 'False' else ''}"
        if row["limit"]
        else "",
        "note": str(row["error"] or row["note"] or ""),
    }


def _quartiles(row: Mapping[str, Any], names: tuple[str, str, str], behind: str) -> str:
    if not _filled(row[names[0]]):
        return ""
    middle, low, high = (shown(float(row[name])) for name in names)
    return f"{middle} [{low}, {high}]{behind}"


def _digits(value: Any, digits: int) -> str:
    return f"{float(value):.{digits}f}" if _filled(value) else ""


def _filled(value: Any) -> bool:
    return value not in (None, "")
