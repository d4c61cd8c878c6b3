"""The lowest recalls of each indexer and budget: 1st percentile, and the worst row with its place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute

PLACE = ("sample", "layer", "head", "position")
# An indexer and budget, whether k covers all that the row sees, and whether it is against another's list.
Key = tuple[str, str, bool, bool]


class Lowest:
    """Rows of heads, and those against another's list, a table at a time; of each, eight bytes are kept.

    Of rows alike the worst is that of the first sample, layer and head, as the table stands in order.
    """

    def __init__(self) -> None:
        self._values: defaultdict[Key, list[np.ndarray]] = defaultdict(list)
        self._worst: dict[Key, tuple[float, dict[str, int]]] = {}

    def add(self, rows: pa.Table) -> None:
        """Add the rows of a table that count."""
        named = pc.field("reference") != pc.field("level")
        rows = rows.filter(named | (pc.field("level") == "head"))
        # A reduced row is a mean; the worst of its positions stands beside it.
        column = "recall_min" if "recall_min" in rows.column_names else "recall"
        places = {name: rows[name].to_numpy() for name in PLACE if name in rows.column_names}
        values = rows[column].to_numpy()
        for key, its in _groups(rows):
            own = values[its]
            self._values[key].append(own)
            if np.isnan(own).all():
                continue
            alike = its[own == np.nanmin(own)]
            first = alike[np.lexsort([places[n][alike] for n in ("head", "layer", "sample")])[0]]
            place = {name: numbers[first].item() for name, numbers in places.items()}
            worst = float(values[first]), place
            self._worst[key] = min(self._worst.get(key, worst), worst, key=_rank)

    def of(self, indexer: str, budget: str, whole: bool, named: bool) -> dict[str, Any]:
        """recall_p1, worst and worst_row.

        whole: of all rows, which are trivial, else of the others; named: of those against another's list.
        """
        key = indexer, budget, whole, named
        values = np.concatenate(self._values[key])
        worst, place = self._worst[key]
        return {
            "recall_p1": float(np.nanpercentile(values, 1)),
            "worst": worst,
            "worst_row": place,
        }


def _groups(rows: pa.Table) -> Iterator[tuple[Key, np.ndarray]]:
    """The places of the rows of each key."""
    keys = ["indexer", "budget", "trivial", "named"]
    named = pc.not_equal(rows["reference"], rows["level"])
    numbered = rows.append_column("named", named).select(keys)
    numbered = numbered.append_column("place", pa.array(np.arange(rows.num_rows)))
    groups = numbered.group_by(keys, use_threads=False).aggregate([("place", "list")])
    lists = groups["place_list"].combine_chunks()
    for number, key in enumerate(zip(*(groups[name].to_pylist() for name in keys), strict=True)):
        yield key, lists[number].values.to_numpy()


def _rank(worst: tuple[float, dict[str, int]]) -> tuple[float, list[int]]:
    """By recall, then sample, layer and head."""
    value, place = worst
    return value, [place[name] for name in ("sample", "layer", "head")]
