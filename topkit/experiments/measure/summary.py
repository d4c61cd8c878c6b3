"""What fidelity rows say of each indexer: mean, interval, 1st percentile, worst row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats


def summarise(table: pa.Table, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row an indexer and budget, over all heads, layers and positions that are not trivial.

    `metrics` names columns whose means are added.
    The interval of the mean recall is Student's over samples; one sample gives none. Where all rows
    are trivial (k >= visible), every mean is null.
    """
    rows = []
    table = table.filter(pc.field("reference") == "head")
    for cell in table.group_by(["indexer", "budget"]).aggregate([]).to_pylist():
        of = (pc.field("indexer") == cell["indexer"]) & (pc.field("budget") == cell["budget"])
        judged = table.filter(of & ~pc.field("trivial"))
        more = {name: _mean(judged, name) for name in metrics} if judged.num_rows else {}
        rows.append({**cell, **_row(judged), **dict.fromkeys(metrics), **more})
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
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Student's interval of a mean of shares, from the means of clusters; None where there is one.

    A bootstrap of few clusters reaches no further than the least and the greatest of them. Each
    weighs by its rows, as it does in the mean.
    """
    valid = np.isfinite(values)
    _, place = np.unique(clusters[valid], return_inverse=True)
    counts = np.bincount(place)
    many, mean = len(counts), values[valid].mean() if len(counts) else np.nan
    if many < 2:
        return None, None
    off = np.bincount(place, values[valid] - mean) / counts.mean()
    reach = stats.t.ppf((1 + level) / 2, many - 1) * np.sqrt((off**2).sum() / (many - 1) / many)
    return max(0.0, float(mean - reach)), min(1.0, float(mean + reach))


def _array(rows: pa.Table, name: str) -> np.ndarray:
    column = rows[name].to_numpy()
    return column.astype(np.float64)


def _mean(rows: pa.Table, name: str) -> float | None:
    values = _array(rows, name)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
