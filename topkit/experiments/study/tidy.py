"""Every cell of a run as a row of plain numbers: what a report shows, for other programs."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.study.cell_rows import verdict_of
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.curves import FIDELITY
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.intervals import MARGIN, Intervals
from topkit.experiments.study.kinds import family_of, kind_of
from topkit.experiments.study.reading import STUDY, Reading, reading, study_of
from topkit.experiments.study.stats import Interval
from topkit.experiments.study.trivial import note
from topkit.indexers.budget import Budgets, parse_budgets

Row = dict[str, Any]
# The columns that are no real numbers; docs/exports.md defines all.
_WORDS = ("model", "task", "sparse_from", "indexer", "family", "kind", "k", "measure", "verdict", "verdict_to_dense", "note")  # fmt: skip
_COUNTS = ("length", "haystacks", "haystacks_left_out", "questions")


def cells(
    run: str | Path | Sequence[str | Path], margin: float = MARGIN, k: Budgets | None = None
) -> pa.Table:
    """One tidy table of a run's cells: a row a model, task, length, indexer and budget; null where there is no number.

    run: a folder of `study` or `evaluate`, or several of one identity. margin: of the verdicts. k: the budgets that
    are wanted, and full attention; all by default. docs/exports.md defines the columns.
    Raises: InputError when the run holds no rows, or none at a budget.
    """
    return table_of(rows_of_run(run, margin, k)[0])


def rows_of_run(
    run: str | Path | Sequence[str | Path], margin: float = MARGIN, k: Budgets | None = None
) -> tuple[list[Row], Reading]:
    """The rows of `cells`, and what was read for them."""
    several = list(run) if isinstance(run, list | tuple) else [run]
    runs = [path_of(one, "the folder of a run") for one in several]
    if not runs:
        raise InputError("no run to read; name the folders of one or more")
    study = study_of(runs[0] / STUDY)
    read = reading(runs, study)
    rows = tidy(read.curves, margin, _model(read, study))
    if k is not None:
        rows = _at([str(one) for one in parse_budgets(k)], rows)
    return rows, read


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Rows of `tidy` as a table."""
    types = {**dict.fromkeys(_WORDS, pa.string()), **dict.fromkeys(_COUNTS, pa.int64())}
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in rows[0]])
    return pa.Table.from_pylist(list(rows), schema)


def tidy(curves: Sequence[Curve], margin: float = MARGIN, model: str = "") -> list[Row]:
    """The rows of curves, in their order; None where there is no number.

    model: the name of one that the curves do not name.
    """
    return [row for curve in curves for row in _of_curve(curve, margin, model)]


def _of_curve(curve: Curve, margin: float, model: str) -> list[Row]:
    of, rows = Findings(curve, margin), list[Row]()
    nll = of.nll_to_dense
    for place, cell in enumerate(curve.cells):
        row: Row = {
            "model": curve.model or model or None,
            "task": curve.task,
            "length": curve.length,
            "sparse_from": curve.sparse_from,
            "indexer": None if cell.indexer is None else repr(cell.indexer),
            "family": None if cell.indexer is None else family_of(cell),
            "kind": kind_of(cell),
            "k": None if cell.budget is None else str(cell.budget),
            "haystacks": len(curve.haystacks),
            "haystacks_left_out": curve.dropped,
            "questions": int(curve.questions.sum()),
            "tokens": _tokens(curve),
            "measure": curve.measure,
            **_bounds("accuracy", of.accuracy[place], ("accuracy", "low", "high")),
            **_bounds("to_exact", of.to_exact(place)),
            "verdict": verdict_of(of, place) or None,
            **_bounds("to_dense", _to_dense(of, place)),
            "verdict_to_dense": of.verdict(place) or None,
            **{
                name.replace(" ", "_").replace("-", "_"): _apart(of, name, place) for name in _KINDS
            },
            **_bounds("nll", of.losses["nll"][place]),
            **_bounds("nll_less_dense", None if nll is None else nll[place]),
            **_bounds("kl", of.losses["kl"][place]),
            **{name: _finite(curve.mean(name)[place]) for name in FIDELITY},
            "note": note(curve, place),
        }
        rows.append(row)
    return rows


_KINDS = ("trained words", "held-out words")


def _apart(of: Intervals, name: str, place: int) -> float | None:
    return _finite(of.apart[name].value[place]) if name in of.apart else None


def _to_dense(of: Intervals, place: int) -> Interval | None:
    """Of full attention to itself there is no difference."""
    if of.to_dense is None or place == of.curve.place(None):
        return None
    return of.to_dense[place]


def _tokens(curve: Curve) -> float | None:
    counted = curve.tokens[np.isfinite(curve.tokens)]
    return float(counted.mean()) if counted.size else None


def _bounds(name: str, interval: Interval | None, names: Sequence[str] = ()) -> Row:
    names = names or (name, f"{name}_low", f"{name}_high")
    if interval is None:
        return dict.fromkeys(names)
    return {name: _finite(x) for name, x in zip(names, interval, strict=True)}


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _model(read: Reading, study: Mapping[str, Any]) -> str:
    """The one model of a run; of several each curve names its own."""
    asked = dict.fromkeys(str(one["model"]) for run in read.described for one in run["asked"] if one.get("model"))  # fmt: skip
    return ", ".join(asked) or str(study.get("model", ""))


def _at(budgets: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    there = dict.fromkeys(row["k"] for row in rows if row["k"] is not None)
    missing = [one for one in budgets if one not in there]
    if missing:
        known = ",".join(there) or "none: full attention ran alone"
        raise InputError(f"nothing was run at k = {', '.join(missing)}; there is -k {known}")
    return [row for row in rows if row["k"] is None or row["k"] in budgets]
