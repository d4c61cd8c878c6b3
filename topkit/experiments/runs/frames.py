"""Tables as data frames, for those who work in pandas or polars; topkit's own stay Arrow."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topkit.documents import quote
from topkit.errors import InputError, extras_named

if TYPE_CHECKING:
    import pandas
    import polars


def to_pandas(table: Any) -> pandas.DataFrame:
    """A table of `evaluate`, `cells` or a measurement as a pandas DataFrame; dictionaries become categoricals.

    Columns with nulls keep their type where pandas has one: whole numbers become Int64.
    Raises: InputError for what is no table; MissingExtra without pandas.
    """
    with extras_named():
        import pandas

    whole = {pa.int64(): pandas.Int64Dtype(), pa.int32(): pandas.Int32Dtype()}
    table = _table(table)
    nulls = {table.schema.field(n).type for n, c in enumerate(table.columns) if c.null_count}
    return table.to_pandas(types_mapper={t: x for t, x in whole.items() if t in nulls}.get)


def to_polars(table: Any) -> polars.DataFrame:
    """A table of `evaluate`, `cells` or a measurement as a polars DataFrame; dictionaries become Categorical.

    Raises: InputError for what is no table; MissingExtra without polars.
    """
    with extras_named():
        import polars

    frame = polars.from_arrow(_table(table))
    assert isinstance(frame, polars.DataFrame)
    return frame


def _table(table: Any) -> pa.Table:
    """The table, or that of a measurement."""
    own = getattr(table, "table", table)
    if not isinstance(own, pa.Table):
        raise InputError(
            f"expected a pyarrow.Table, as topkit.evaluate and topkit.cells give, or what topkit.measure gives; "
            f"got {quote(type(table).__name__)}"
        )
    return own
