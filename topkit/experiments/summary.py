"""What fidelity rows say of each indexer: mean, interval, 1st percentile, worst row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DRAWS = 2000


def summarise(table: pa.Table) -> list[dict[str, Any]]:
    """A row an indexer and budget, over all heads, layers and positions that are not trivial.

    The interval of the mean recall is a bootstrap over samples; one sample gives none. Where all
    rows are trivial (k >= visible), every mean is null.
    """
    rows = []
    table = table.filter(pc.field("reference") == "head")
    for cell in table.group_by(["indexer", "budget"]).aggregate([]).to_pylist():
        of = (pc.field("indexer") == cell["indexer"]) & (pc.field("budget") == cell["budget"])
        judged = table.filter(of & ~pc.field("trivial"))
        rows.append({**cell, **_row(judged)})
    return sorted(rows, key=lambda row: (row["indexer"], row["k"] or 0, row["budget"]))


def _row(rows: pa.Table) -> dict[str, Any]:
    if not rows.num_rows:
        return dict.fromkeys(
            ("k", "rows", "recall", "low", "high", "recall_p1", "worst", "worst_row", "mass",
             "mass_ratio", "output_error", "bytes_read", "index_bytes_per_key"), None,
        )  # fmt: skip
    recall = _array(rows, "recall")
    low, high = interval(recall, _array(rows, "sample"))
    worst_column = "recall_min" if "recall_min" in rows.column_names else "recall"
    worst = rows.slice(int(np.nanargmin(_array(rows, worst_column))), 1).to_pylist()[0]
    places = ("sample", "layer", "head", "position")
    return {
        "k": max(rows["k"].to_pylist()),
        "rows": rows.num_rows,
        "recall": float(np.nanmean(recall)),
        "low": low,
        "high": high,
        "recall_p1": float(np.nanpercentile(_array(rows, worst_column), 1)),
        "worst": worst[worst_column],
        "worst_row": {name: worst[name] for name in places if name in worst},
        "mass": _mean(rows, "mass"),
        "mass_ratio": _mean(rows, "mass_ratio"),
        "output_error": _mean(rows, "output_error"),
        "bytes_read": _mean(rows, "bytes_read"),
        "index_bytes_per_key": float(
            np.mean(_array(rows, "index_bytes") / _array(rows, "visible"))
        ),
    }


def interval(
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float | None, float | None]:
    """A bootstrap interval of the mean, clusters drawn whole; None where there is only one."""
    names, place = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        return None, None
    valid = np.isfinite(values)
    sums = np.bincount(place[valid], values[valid], len(names))
    counts = np.bincount(place[valid], minlength=len(names))
    drawn = np.random.default_rng(seed).integers(0, len(names), (DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _array(rows: pa.Table, name: str) -> np.ndarray:
    column = rows[name].to_numpy()
    return column.astype(np.float64)


def _mean(rows: pa.Table, name: str) -> float | None:
    values = _array(rows, name)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
