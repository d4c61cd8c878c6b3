"""What fidelity rows say of each indexer: mean, interval, 1st percentile, worst row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from topkit.documents import quote
from topkit.errors import InputError
from topkit.grammar import nearest

WHOLE = "k covers the whole context"
# Of a list that several heads share, judged once.
UNITS = ("recall", "mass")
EXACT = "the exact Top-k"


def summarise(table: pa.Table, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row an indexer and budget, over all heads, layers and positions that are not trivial.

    `metrics` names columns whose means are added. `note` says where rows are trivial (k >= visible): they
    are left out, unless all are. `unit` says what shares a list, head, group or layer, and unit_recall and
    unit_mass are those of its lists, each judged once.
    Where the rows name another reference, recall, its interval, percentile and worst row are against that list;
    `against` says whose it is, and exact_recall what the mean is against the exact Top-k.
    The interval of the mean recall is Student's over samples; one sample gives none.
    """
    numbers = [f.name for f in table.schema if not pa.types.is_string(f.type)]
    for name in metrics:
        if name not in numbers:
            raise InputError(
                f"the rows have no metric {quote(name)}; {nearest(str(name), numbers)}"
            )
    summary = []
    for cell in table.group_by(["indexer", "budget"]).aggregate([]).to_pylist():
        its = (pc.field("indexer") == cell["indexer"]) & (pc.field("budget") == cell["budget"])
        own = table.filter(its & (pc.field("reference") == pc.field("level")))
        rows, note = _counted(own.filter(pc.field("level") == "head"))
        means = {name: _mean(rows, name) for name in metrics}
        named = table.filter(its & (pc.field("reference") != pc.field("level")))
        row = {**cell, **_row(rows), **headline(_row(rows), named)}
        summary.append({**row, **means, **_units(own), "note": note})
    return sorted(summary, key=lambda row: (row["indexer"], row["k"], row["budget"]))


def headline(exact: dict[str, Any], named: pa.Table) -> dict[str, Any]:
    """What the recall of a row of the summary is against: another's list where rows name one, or the exact Top-k."""
    if not named.num_rows:
        return {"against": EXACT, "exact_recall": exact["recall"]}
    rows, _ = _counted(named)
    return {
        **recalls(rows),
        "against": rows["reference"][0].as_py(),
        "exact_recall": exact["recall"],
    }


def _counted(rows: pa.Table) -> tuple[pa.Table, str]:
    """The rows that are not trivial, or all where all are; and a note that says so."""
    open_ = rows.filter(~pc.field("trivial"))
    left_out = rows.num_rows - open_.num_rows
    if not open_.num_rows:
        return rows, WHOLE
    if not left_out:
        return open_, ""
    return open_, f"{left_out:,} of {rows.num_rows:,} rows left out: k covers all that they see"


def _units(rows: pa.Table) -> dict[str, Any]:
    shared = rows.filter(pc.field("level") != "head")
    counted, _ = _counted(shared if shared.num_rows else rows)
    level = counted["level"][0].as_py()
    return {"unit": level, **{f"unit_{name}": _mean(counted, name) for name in UNITS}}


def recalls(rows: pa.Table) -> dict[str, Any]:
    """The mean recall of rows, its interval over samples, 1st percentile and worst row."""
    recall = _array(rows, "recall")
    low, high = interval(recall, _array(rows, "sample"))
    # A reduced row is a mean; the worst of its positions stands beside it.
    lowest = "recall_min" if "recall_min" in rows.column_names else "recall"
    worst = rows.slice(int(np.nanargmin(_array(rows, lowest))), 1).to_pylist()[0]
    places = ("sample", "layer", "head", "position")
    return {
        "recall": float(np.nanmean(recall)),
        "low": low,
        "high": high,
        "recall_p1": float(np.nanpercentile(_array(rows, lowest), 1)),
        "worst": worst[lowest],
        "worst_row": {name: worst[name] for name in places if name in worst},
    }


def _row(rows: pa.Table) -> dict[str, Any]:
    return {
        "k": max(rows["k"].to_pylist()),
        "rows": rows.num_rows,
        **recalls(rows),
        "own_recall": _mean(rows, "own_recall"),
        "kept": _mean(rows, "kept"),
        "mass": _mean(rows, "mass"),
        "mass_ratio": _mean(rows, "mass_ratio"),
        "output_error": _mean(rows, "output_error"),
        "bytes_read": _mean(rows, "bytes_read"),
        "bytes_read_per_key": float(
            np.nanmean(_array(rows, "bytes_read") / _array(rows, "visible"))
        ),
        "index_bytes_per_key": float(
            np.mean(_array(rows, "index_bytes") / _array(rows, "visible"))
        ),
    }


def interval(
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Student's interval of a mean of shares, from the means of clusters; one cluster has none.

    A bootstrap of few clusters reaches no further than the least and the greatest of them. Each
    cluster weighs by its rows, as it does in the mean.
    """
    valid = np.isfinite(values)
    _, cluster = np.unique(clusters[valid], return_inverse=True)
    sizes = np.bincount(cluster)
    count, mean = len(sizes), values[valid].mean() if len(sizes) else np.nan
    if count < 2:
        return None, None
    deviation = np.bincount(cluster, values[valid] - mean) / sizes.mean()
    error = np.sqrt((deviation**2).sum() / (count - 1) / count)
    half = stats.t.ppf((1 + level) / 2, count - 1) * error
    return max(0.0, float(mean - half)), min(1.0, float(mean + half))


def _array(rows: pa.Table, name: str) -> np.ndarray:
    return rows[name].to_numpy().astype(np.float64)


def _mean(rows: pa.Table, name: str) -> float | None:
    values = _array(rows, name)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
