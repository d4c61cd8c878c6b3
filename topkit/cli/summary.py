"""A run's fidelity and accuracy as rows for the screen: a mean never without its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from topkit.cli.exports import Exports
from topkit.experiments.measure.measured import Measured
from topkit.experiments.measure.summary import EXACT
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.kinds import name_of
from topkit.experiments.study.sentences import said
from topkit.experiments.study.tidy import tidy
from topkit.experiments.study.trivial import note
from topkit.grammar import short
from topkit.indexers.spec import recorded

_KINDS = ("trained words", "held-out words")


def accuracy(curves: Sequence[Curve], as_json: bool) -> list[dict[str, Any]]:
    """One row a task, length and cell; numbers for a program, or text for the eye."""
    if as_json:
        return tidy(curves)
    # With one kind of words only, its accuracy is the accuracy.
    kinds = _KINDS if any(len(set(curve.held_out)) > 1 for curve in curves) else ()
    return [row for curve in curves for row in _words(curve, kinds)]


def printable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of `tidy` as a table in print: what tells cells apart, and the numbers that a reader looks for."""
    several = [name for name in ("model", "task", "length") if len({row[name] for row in rows}) > 1]
    return [
        {
            **{name: str(row[name]) for name in several},
            "indexer": "full attention"
            if row["indexer"] is None
            else short(recorded(row["indexer"])),
            "k": row["k"] or "",
            "accuracy [95 %]": _said(row, ("accuracy", "low", "high")),
            "minus exact": _said(row, ("to_exact", "to_exact_low", "to_exact_high"), "+"),
            "verdict": row["verdict"] or "",
            "recall": _short(row["recall"], 2),
            "mass": _short(row["mass"], 2),
            "KiB read": _short(row["bytes_read"] and row["bytes_read"] / 1024, 1),
            "index KiB": _short(row["index_bytes"] and row["index_bytes"] / 1024, 1),
        }
        for row in rows
    ]


def _said(row: Mapping[str, Any], names: tuple[str, str, str], sign: str = "") -> str:
    value, low, high = (row[name] for name in names)
    if value is None:
        return ""
    if low is None:
        return f"{value:{sign}.2f}"
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def left_out(curves: Sequence[Curve]) -> list[str]:
    """A line a task and length some of whose haystacks a cell lacks: those are in no row of `accuracy`."""
    return [
        f"{curve.title}: {curve.dropped} of {curve.dropped + len(curve.haystacks)} haystacks are left "
        "out, as some cells were not run on them; run all cells with as many samples to have them in"
        for curve in curves
        if curve.dropped
    ]


def fidelity(summary: list[dict[str, Any]], metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What was measured, an indexer and budget a row; `note` says where k covers all that is visible."""
    shared = any(row["unit"] != "head" for row in summary)
    named = any(row["against"] != EXACT for row in summary)
    return [
        {
            "indexer": short(recorded(row["indexer"])),
            "k": row["budget"],
            "rows": f"{row['rows'] or 0:,}",
            **({"against": short(recorded(row["against"]))} if named else {}),
            "recall [95 %]": _ranged(row["recall"], row["low"], row["high"]),
            "1st percentile": _short(row["recall_p1"]),
            "worst": _short(row["worst"]),
            "worst at": _place(row["worst_row"]),
            **({"recall of exact": _short(row["exact_recall"])} if named else {}),
            "own recall": _short(row["own_recall"]),
            "kept": _short(row["kept"], 1),
            "mass": _short(row["mass"]),
            **({"of the list": _of_list(row)} if shared else {}),
            "output error": _short(row["output_error"]),
            "KiB read": _short(row["bytes_read"] and row["bytes_read"] / 1024, 1),
            "B a key": _short(row["bytes_read_per_key"], 1),
            **{name.replace("_", " "): _short(row[name]) for name in metrics},
            "note": row["note"],
        }
        for row in summary
    ]


def export_measured(
    exports: Exports, measured: Measured, metrics: Sequence[str], citation: str
) -> None:
    """Write and print what was measured, an indexer and budget a row."""
    rows = measured.summary(metrics)
    plain = [{**row, "worst_row": _place(row["worst_row"])} for row in rows]
    exports.write(rows, plain, fidelity(rows, metrics), citation)


def _of_list(row: dict[str, Any]) -> str:
    """A shared list's own recall and mass, judged once."""
    if row["unit"] == "head":
        return ""
    return f"{row['unit']}: recall {row['unit_recall']:.3f}, mass {row['unit_mass']:.3f}"


def _ranged(value: float | None, low: float | None, high: float | None) -> str:
    # One sample has no interval.
    reach = "[one sample]" if low is None else f"[{low:.3f}, {high:.3f}]"
    return "" if value is None else f"{value:.3f} {reach}"


def _place(row: dict[str, int] | None) -> str:
    return ", ".join(f"{name} {number}" for name, number in (row or {}).items())


def _words(curve: Curve, kinds: Sequence[str]) -> list[dict[str, Any]]:
    findings = Findings(curve)
    return [
        {
            "task": f"{curve.task} {curve.length}",
            "indexer": name_of(cell),
            "k": "" if cell.budget is None else str(cell.budget),
            "questions": int(curve.questions.sum()),
            "accuracy [95 %]": said(findings.accuracy[place]),
            **{
                name: said(findings.apart[name][place]) if name in findings.apart else ""
                for name in kinds
            },
            "to full attention": findings.verdict(place),
            **dict(zip(("NLL", "minus full attention", "KL"), findings.nats(place), strict=True)),
            "recall": _short(curve.mean("recall")[place]),
            "own recall": _short(curve.mean("own_recall")[place]),
            "kept": _short(curve.mean("kept")[place], 1),
            "mass": _short(curve.mean("mass")[place]),
            **(
                {
                    "recall of the list": _short(curve.mean("unit_recall")[place]),
                    "mass of the list": _short(curve.mean("unit_mass")[place]),
                }
                if np.isfinite(curve.mean("unit_recall")).any()
                else {}
            ),
            "note": note(curve, place),
        }
        for place, cell in enumerate(curve.cells)
    ]


def _short(value: float | None, digits: int = 3) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
