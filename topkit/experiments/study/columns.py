"""A table's columns as NumPy holds them: which value of some keys each row has, and numbers."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topkit.experiments.study.stats import Array


def numbered(table: pa.Table, names: Sequence[str]) -> tuple[list[tuple[Any, ...]], NDArray[np.int64]]:  # fmt: skip
    """The values of some columns that differ, in the order of their first rows, and the number of each row's."""
    codes = np.zeros(table.num_rows, dtype=np.int64)
    for name in names:
        column: Any = table[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode(null_encoding="encode")
        codes = codes * (len(column.dictionary) + 1) + column.indices.to_numpy(zero_copy_only=False)
        # Small again, so that many columns never overflow.
        codes = np.unique(codes, return_inverse=True)[1]
    _, first, of = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    found = table.select(list(names)).take(first[order]).to_pylist()
    return [tuple(row[name] for name in names) for row in found], rank[of]


def by_number(of: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The rows of each number below `count`, in their order."""
    order = np.argsort(of, kind="stable")
    return np.split(order, np.searchsorted(of[order], np.arange(1, count)))


def numbers(table: pa.Table, name: str) -> Array:
    """A column as numbers; NaN where it has none, or is not there."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return table[name].cast(pa.float64()).to_numpy()


def missing(table: pa.Table, name: str) -> bool:
    """Whether no row has anything in a column."""
    return name not in table.column_names or table[name].null_count == table.num_rows
