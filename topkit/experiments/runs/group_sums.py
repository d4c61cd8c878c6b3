"""Sums of groups of rows that come a table at a time: of all rows, no more is held than the sums."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from topkit.experiments.runs.dictionaries import encoded, plain

pc: Any = pyarrow.compute
# Groups that wait to be joined, at least.
_WAITING = 1 << 16


class GroupSums:
    """Sum, count of values that are there, and number of rows, for each value of the keys.

    sums: columns; one that no table has is left out of the result. most: columns whose largest value is kept.
    """

    def __init__(self, keys: Sequence[str], sums: Sequence[str], most: Sequence[str] = ()) -> None:
        self.keys, self.sums, self.most = list(keys), list(sums), list(most)
        self._seen: set[str] = set()
        self._parts: list[pa.Table] = []
        self._joined = 0

    def add(self, rows: pa.Table) -> None:
        """Add the rows of a table."""
        there = [name for name in self.sums if name in rows.column_names]
        self._seen |= set(there)
        made = [(name, of) for name in there for of in ("sum", "count")]
        made += [(name, "max") for name in self.most]
        # In one thread: sums of floats depend on their order.
        groups = encoded(rows.select(list(dict.fromkeys([*self.keys, *there, *self.most]))))
        groups = groups.group_by(self.keys, use_threads=False).aggregate([*made, ([], "count_all")])
        for name in set(self.sums) - set(there):
            groups = groups.append_column(f"{name}_sum", pa.nulls(len(groups), pa.float64()))
            groups = groups.append_column(f"{name}_count", pa.nulls(len(groups), pa.int64()))
        self._parts.append(plain(groups))
        if sum(len(part) for part in self._parts[1:]) > max(_WAITING, self._joined):
            self._join()

    def table(self) -> pa.Table:
        """A row a group: its keys, NAME_sum, NAME_count and NAME_max of columns, count_all."""
        self._join()
        return self._parts[0] if self._parts else pa.table({})

    def means(self, count: str) -> pa.Table:
        """A row a group: its keys, the means of the columns, and `count`, the number of rows."""
        groups = self.table()
        columns = {name: groups[name] for name in self.keys}
        for name in self.sums:
            if name in self._seen:
                total = groups[f"{name}_sum"].cast(pa.float64())
                columns[name] = pc.divide(total, groups[f"{name}_count"].cast(pa.float64()))
        return pa.table({**columns, count: groups["count_all"]})

    def _join(self) -> None:
        if len(self._parts) < 2:
            return
        whole = pa.concat_tables(self._parts, promote_options="permissive")
        made = [(f"{name}_{of}", "sum") for name in self.sums for of in ("sum", "count")]
        made += [(f"{name}_max", "max") for name in self.most] + [("count_all", "sum")]
        joined = whole.group_by(self.keys, use_threads=False).aggregate(made)
        names = dict(
            zip([f"{name}_{of}" for name, of in made], [name for name, _ in made], strict=True)
        )
        self._parts = [joined.rename_columns([names.get(n, n) for n in joined.column_names])]
        self._joined = len(joined)
