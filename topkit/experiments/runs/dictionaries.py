"""Columns of strings as dictionaries: each string once, and four bytes a row."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute
LABEL = pa.dictionary(pa.int32(), pa.string())


def encoded(table: pa.Table) -> pa.Table:
    """The table with its strings as dictionaries, the same in all chunks, as groups need them."""
    fields = [f.with_type(LABEL) if pa.types.is_string(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata)).unify_dictionaries()


def plain(table: pa.Table) -> pa.Table:
    """The table with its dictionaries as what they stand for."""
    fields = [
        f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def in_order(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows by some columns, ascending; rows alike in these keep their order."""
    columns = [_ranks(table[name]) for name in names]
    keys = pa.table(columns, names=list(names))
    return table.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in names]))


def _ranks(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Numbers in the order of the values: Arrow does not sort by a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return column
    whole = column.unify_dictionaries().combine_chunks()
    return pc.take(pc.rank(whole.dictionary, tiebreaker="dense"), whole.indices)
