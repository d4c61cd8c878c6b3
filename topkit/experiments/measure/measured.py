"""The rows of a measurement, in memory or in its folder, and what they say."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topkit.experiments.measure.summary import summarise
from topkit.experiments.runs.dictionaries import in_order
from topkit.experiments.runs.fidelity_rows import LABELS, table
from topkit.experiments.runs.parts import batches

ORDER = ("indexer", "budget", "sample", "layer", "level", "head")


@dataclass(frozen=True)
class Measured:
    """The rows, and what they say of each indexer at each budget.

    form: their table's name in TABLES; pieces: they themselves, or the parts that hold them, which are read when
    they are wanted.
    """

    form: str
    pieces: Sequence[pa.Table | Path] = field(repr=False)

    @cached_property
    def table(self) -> pa.Table:
        """All rows, in memory; strings are dictionaries."""
        return in_order(table(self.form, list(self._tables())), ORDER)

    @cached_property
    def rows(self) -> int:
        """How many there are."""
        return sum(
            pq.read_metadata(one).num_rows if isinstance(one, Path) else one.num_rows
            for one in self.pieces
        )

    def summary(self, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
        """A row an indexer and budget: mean, 1st percentile, worst row and interval.

        `metrics` names further columns of METRICS whose means are wanted. Rows in a folder are read piece by
        piece.
        """
        return summarise((table(self.form, [one]) for one in self._tables()), metrics)

    def _tables(self) -> Iterator[pa.Table]:
        for one in self.pieces:
            if isinstance(one, Path):
                yield from batches([one], labels=LABELS)
            else:
                yield one
