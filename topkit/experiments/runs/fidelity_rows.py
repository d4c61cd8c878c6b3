"""The fidelity row: one schema for what `measure`, `attach` and `evaluate` write.

docs/metrics.md defines every column.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from topkit.experiments.runs.dictionaries import LABEL, encoded
from topkit.experiments.runs.judged import COSTS, Judged
from topkit.fidelity import ANSWER_KEY, METRICS

# Where a row comes from, how its selection was made, and how it was judged.
_PLACE = ("sample", "layer", "head", "position")
_CELL = ("indexer", "budget", "k")
_NUMBERS = ("visible", "trivial", *METRICS, *COSTS, "index_bytes")
_ROW = (*_PLACE, *_CELL, "reference", "level", *_NUMBERS)

_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("task", "sparse_from", "steps"), LABEL),
    **dict.fromkeys(("length", "haystack", "question", "call", "row"), pa.int64()),
    **dict.fromkeys(_PLACE, pa.int64()),
    **dict.fromkeys(_CELL, LABEL),
    "k": pa.int64(),
    **dict.fromkeys(("reference", "level"), LABEL),
    **dict.fromkeys(_NUMBERS, pa.float64()),
    "trivial": pa.bool_(),
    **dict.fromkeys(ANSWER_KEY, pa.float64()),
    "shadow": pa.bool_(),
    **dict.fromkeys(("recall_min", "mass_min"), pa.float64()),
    **dict.fromkeys(("positions", "rows"), pa.int64()),
}
SCHEMA = pa.schema(list(_TYPES.items()))
# The columns of strings.
LABELS = [field.name for field in SCHEMA if field.type == LABEL]


def _some(*names: str) -> pa.Schema:
    """These columns of the schema, in its order."""
    return pa.schema([column for column in SCHEMA if column.name in names])


# The columns of each table; a column that has no meaning in one is not there.
TABLES: dict[str, pa.Schema] = {
    "measure": _some(*_ROW),
    # One row in place of those of all positions.
    "reduced": _some(*(set(_ROW) - {"position"}), "recall_min", "mass_min", "rows"),
    "attach": _some("call", "row", *_ROW),
    "evaluate": _some(
        *("task", "sparse_from", "steps", "length", "haystack", "question"),
        *(*_ROW, *ANSWER_KEY, "shadow", "positions"),
    ),
}  # fmt: skip


def rows(
    judged: Judged,
    places: Mapping[str, Tensor | str | float | None],
    keep: Tensor | None = None,
) -> pa.Table:
    """A row a query and head: its place, and what is judged of it; NaN is null.

    A place is one value for all rows, or a tensor that broadcasts to the columns [B, H, Tq]; the head,
    the level and the reference are added. Only rows that `keep` says, and that see a key, are kept: a
    query that sees nothing has nothing to be judged by.
    """
    shape = judged.columns["visible"].shape
    head = torch.arange(shape[1])[:, None]
    columns = {"level": judged.level, "reference": judged.reference, "head": head, **places}
    columns |= judged.columns
    numbers = {name: x for name, x in columns.items() if isinstance(x, Tensor)}
    block = torch.empty(len(numbers), *shape, dtype=torch.float64)
    for line, x in zip(block, numbers.values(), strict=True):
        line.copy_(x)
    kept = block[list(numbers).index("visible")] > 0
    if keep is not None:
        kept &= keep.cpu()
    flat = (block.flatten(1) if kept.all() else block[:, kept]).numpy()
    lines = dict(zip(numbers, flat, strict=True))
    count = flat.shape[1]

    def column(name: str) -> pa.Array:
        if name not in lines:
            return pa.repeat(pa.scalar(columns[name], _TYPES[name]), count)
        if name == "trivial":
            return pa.array(lines[name] > 0)
        return pa.array(lines[name], _TYPES[name], from_pandas=True)

    return pa.table({name: column(name) for name in SCHEMA.names if name in columns})


def table(name: str, parts: Sequence[pa.Table], **constants: str | int) -> pa.Table:
    """The rows of all parts as one of TABLES; the constants are the same in every row.

    Rows written by 0.1, whose types differed from table to table, get those of the schema.
    """
    schema = TABLES[name]
    if not parts:
        return schema.empty_table()
    whole = pa.concat_tables(map(encoded, parts), promote_options="permissive")
    for column, value in constants.items():
        tied = pa.repeat(pa.scalar(value, _TYPES[column]), whole.num_rows)
        whole = whole.append_column(column, tied)
    return whole.select(schema.names).cast(schema).unify_dictionaries()
