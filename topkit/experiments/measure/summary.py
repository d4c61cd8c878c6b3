"""What fidelity rows say of each indexer: mean, interval, 1st percentile, worst row.

Rows come a table at a time and go again: what stays of them are sums, and one column, for its percentile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import stats

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.measure.lowest import Lowest
from topkit.experiments.runs.group_sums import GroupSums
from topkit.grammar import nearest

pc: Any = pyarrow.compute
WHOLE = "k covers the whole context"
# Of a list that several heads share, judged once.
UNITS = ("recall", "mass")
MEANS = (
    "recall",
    "own_recall",
    "kept",
    "mass",
    "mass_ratio",
    "output_error",
    "bytes_read",
    "bytes_read_per_key",
    "index_bytes_per_key",
)
EXACT = "the exact Top-k"
CELL = ["indexer", "budget"]
KEYS = [*CELL, "reference", "level", "trivial"]


def summarise(tables: Iterable[pa.Table], metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row an indexer and budget, over all heads, layers and positions that are not trivial.

    `metrics` names columns whose means are added. `note` says where rows are trivial (k >= visible): they
    are left out, unless all are. `unit` says what shares a list, head, group or layer, and unit_recall and
    unit_mass are those of its lists, each judged once.
    Where the rows name another reference, recall, its interval, percentile and worst row are against that list;
    `against` says whose it is, and exact_recall what the mean is against the exact Top-k.
    The interval of the mean recall is Student's over samples; one sample gives none.
    """
    means = list(dict.fromkeys([*MEANS, *metrics]))
    sums, lowest = GroupSums([*KEYS, "sample"], means, most=["k"]), Lowest()
    for table in tables:
        _require_numbers(table, metrics)
        sums.add(_summed(table, means))
        lowest.add(table)
    every, summary = sums.table(), []
    for cell in every.group_by(CELL).aggregate([]).to_pylist() if every.num_rows else []:
        its = every.filter(_of(cell))
        own = its.filter(pc.field("reference") == pc.field("level"))
        rows, note = _counted(own.filter(pc.field("level") == "head"))
        more = {name: mean_of(rows, name) for name in metrics}
        row = {**cell, **_row(rows), **_recalls(its, own, lowest), **more}
        summary.append({**row, **_units(own), "note": note})
    return sorted(summary, key=lambda row: (row["indexer"], row["k"], row["budget"]))


def _recalls(every: pa.Table, own: pa.Table, lowest: Lowest) -> dict[str, Any]:
    """A cell's recall against another's list where rows name one, or the exact Top-k."""
    heads, _ = _counted(own.filter(pc.field("level") == "head"))
    others = every.filter(pc.field("reference") != pc.field("level"))
    named, _ = _counted(others)
    rows = named if others.num_rows else heads
    parts = [("recall_sum", "sum"), ("recall_count", "sum")]
    samples = rows.group_by("sample", use_threads=False).aggregate(parts)
    totals, sizes = (_array(samples, f"{name}_{of}") for name, of in parts)
    low, high = interval_of_sums(totals, sizes)
    cell = rows["indexer"][0].as_py(), rows["budget"][0].as_py()
    whole = bool(rows["trivial"][0].as_py())
    return {
        "recall": mean_of(rows, "recall"),
        "low": low,
        "high": high,
        **lowest.of(*cell, whole, bool(others.num_rows)),
        "against": rows["reference"][0].as_py() if others.num_rows else EXACT,
        "exact_recall": mean_of(heads, "recall"),
    }


def _require_numbers(table: pa.Table, metrics: Sequence[str]) -> None:
    numbers = [
        field.name
        for field in table.schema
        if not pa.types.is_dictionary(field.type) and field.name not in (*KEYS, "sample")
    ]
    for name in metrics:
        if name not in numbers:
            raise InputError(
                f"the rows have no metric {quote(name)}; {nearest(str(name), numbers)}"
            )


def _summed(rows: pa.Table, means: Sequence[str]) -> pa.Table:
    """The columns that are summed, and their keys; NaN is null, which no mean counts."""
    visible = rows["visible"]
    own = {
        "bytes_read_per_key": pc.divide(rows["bytes_read"], visible),
        "index_bytes_per_key": pc.divide(rows["index_bytes"], visible),
    }
    columns = {name: rows[name] for name in (*KEYS, "sample", "k")}
    columns |= {name: own[name] if name in own else rows[name] for name in means}
    return pa.table({name: _without_nan(column) for name, column in columns.items()})


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    nan = pc.is_nan(column)
    return pc.if_else(nan, None, column) if pc.any(nan).as_py() else column


def _of(cell: Mapping[str, str]) -> Any:
    return (pc.field("indexer") == cell["indexer"]) & (pc.field("budget") == cell["budget"])


def _counted(sums: pa.Table) -> tuple[pa.Table, str]:
    """The sums of rows that are not trivial, or of all where all are; and a note that says so."""
    open_ = sums.filter(~pc.field("trivial"))
    if not open_.num_rows:
        return sums, WHOLE
    every, left = count_of(sums), count_of(sums) - count_of(open_)
    if not left:
        return open_, ""
    return open_, f"{left:,} of {every:,} rows left out: k covers all that they see"


def _units(sums: pa.Table) -> dict[str, Any]:
    shared = sums.filter(pc.field("level") != "head")
    counted, _ = _counted(shared if shared.num_rows else sums)
    level = counted["level"][0].as_py()
    return {"unit": level, **{f"unit_{name}": mean_of(counted, name) for name in UNITS}}


def _row(sums: pa.Table) -> dict[str, Any]:
    means = {name: mean_of(sums, name) for name in MEANS if name != "recall"}
    return {"k": pc.max(sums["k_max"]).as_py(), "rows": count_of(sums), **means}


def interval(
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Student's interval of a mean of shares, from the means of clusters; one cluster has none.

    A bootstrap of few clusters reaches no further than the least and the greatest of them. Each
    cluster weighs by its rows, as it does in the mean.
    """
    valid = np.isfinite(values)
    _, cluster = np.unique(clusters[valid], return_inverse=True)
    return interval_of_sums(np.bincount(cluster, values[valid]), np.bincount(cluster), level)


def interval_of_sums(
    sums: np.ndarray, sizes: np.ndarray, level: float = 0.95
) -> tuple[float | None, float | None]:
    """As `interval`, of each cluster's sum and number of rows."""
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    count = len(sizes)
    if count < 2:
        return None, None
    mean = sums.sum() / sizes.sum()
    deviation = (sums - sizes * mean) / sizes.mean()
    error = np.sqrt((deviation**2).sum() / (count - 1) / count)
    half = stats.t.ppf((1 + level) / 2, count - 1) * error
    return max(0.0, float(mean - half)), min(1.0, float(mean + half))


def count_of(sums: pa.Table) -> int:
    """The rows that were summed."""
    return pc.sum(sums["count_all"]).as_py()


def mean_of(sums: pa.Table, name: str) -> float | None:
    """The mean of a column over all rows that were summed; None where it has no value."""
    values = _array(sums, f"{name}_count").sum()
    return float(_array(sums, f"{name}_sum").sum() / values) if values else None


def _array(sums: pa.Table, name: str) -> np.ndarray:
    return sums[name].fill_null(0).to_numpy().astype(np.float64)
