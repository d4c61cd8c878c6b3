"""From a run's rows to two small tables: means per haystack, and per layer and head.

They are all that a report reads. Rows come a table at a time; of them no more than sums is held.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute

from topkit.experiments.runs.group_sums import GroupSums
from topkit.fidelity import ANSWER_KEY

pc: Any = pyarrow.compute
SETTING = ["task", "length", "sparse_from"]
CELL = ["indexer", "budget"]
SCORES = ["exact_match", "score", "token_accuracy", "nll", "kl", "answer_tokens", "tokens", "parts"]
METRICS = [
    "recall",
    "mass",
    "mass_ratio",
    "output_error",
    "kept",
    "bytes_read",
    "index_bytes",
    "own_recall",
    "top1",
    *ANSWER_KEY,
]
# For the queries of the unchanged model, whose columns are called shadow_NAME.
SHADOW = ["recall", "mass", "mass_ratio", "top1", "output_error", *ANSWER_KEY]
OF_HEADS = ["recall", "mass", *ANSWER_KEY]
# Of lists that heads share, each judged once.
UNITS = ["recall", "mass"]
HAYSTACK = [*SETTING, "haystack", *CELL]
HEAD = [*SETTING, *CELL, "layer", "head"]
# The columns of rows that are read.
ACCURACY = [*HAYSTACK, "wording", "family", "rule", "references", *SCORES]
FIDELITY = [*HAYSTACK, "layer", "head", "steps", "level", "trivial", "shadow", *METRICS]


class HaystackMeans:
    """The two tables of rows of accuracy and of fidelity, added as they are read."""

    def __init__(self) -> None:
        self._scores = GroupSums([*HAYSTACK, "wording", "family"], SCORES)
        self._heads = GroupSums([*HAYSTACK, "trivial"], METRICS)
        self._units = GroupSums([*HAYSTACK, "trivial"], UNITS)
        self._shadow = GroupSums([*HAYSTACK, "trivial"], SHADOW)
        self._by_head = GroupSums(HEAD, OF_HEADS)
        self._shadow_by_head = GroupSums(HEAD, OF_HEADS)
        self._any_shadow = False

    def add_accuracy(self, rows: pa.Table) -> None:
        self._scores.add(_with_parts(rows))

    def add_fidelity(self, rows: pa.Table) -> None:
        """Rows at steps of the answer count; earlier versions wrote no others."""
        if "steps" in rows.column_names:
            rows = rows.filter(pc.field("steps") == "answer")
        rows, shadow = _apart(rows)
        if len(shadow):
            self._any_shadow = True
            shadow = shadow.filter(pc.field("level") == "head")
            self._shadow.add(shadow)
            self._shadow_by_head.add(shadow.filter(~pc.field("trivial")))
        heads = rows.filter(pc.field("level") == "head")
        self._heads.add(heads)
        self._units.add(rows.filter(pc.field("level") != "head"))
        self._by_head.add(heads.filter(~pc.field("trivial")))

    def by_haystack(self) -> pa.Table:
        """A row a cell and haystack: its questions, their mean scores, the mean fidelity observed.

        unit_recall and unit_mass are those of lists that heads share, shadow_NAME those of selections for the
        queries of the unchanged model. trivial_rows counts rows whose k covers
        all that is visible: they are left out, unless all are, which `trivial` says.
        """
        heads = self._heads.means("rows")
        units = _counted(self._units.means("units"), UNITS).drop_columns(["trivial"])
        units = units.rename_columns([f"unit_{n}" if n in UNITS else n for n in units.column_names])
        trivial = heads.filter(pc.field("trivial")).select([*HAYSTACK, "rows"])
        trivial = trivial.rename_columns([*HAYSTACK, "trivial_rows"])
        table = self._scores.means("questions").join(_counted(heads, [*METRICS, "rows"]), HAYSTACK)
        table = table.join(units, HAYSTACK).join(trivial, HAYSTACK)
        if self._any_shadow:
            shadow = _counted(self._shadow.means("rows"), SHADOW)
            table = table.join(_shadowed(shadow, HAYSTACK), HAYSTACK)
        return table.sort_by([(key, "ascending") for key in HAYSTACK])

    def by_head(self) -> pa.Table:
        """A row a cell, layer and query head that had something to choose."""
        table = self._by_head.means("rows")
        if self._any_shadow:
            table = table.join(_shadowed(self._shadow_by_head.means("rows"), HEAD), HEAD)
        return table.sort_by([(key, "ascending") for key in HEAD])


def _apart(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows of selections that were made, and of those in shadow; earlier versions wrote no others than the first."""
    if "shadow" not in rows.column_names:
        return rows, rows.slice(0, 0)
    shadow = pc.fill_null(rows["shadow"], False)
    return rows.filter(pc.invert(shadow)), rows.filter(shadow)


def _shadowed(means: pa.Table, keys: list[str]) -> pa.Table:
    """Means in shadow under names of their own, beside the keys."""
    names = [name for name in SHADOW if name in means.column_names]
    kept = means.select([*keys, *names])
    return kept.rename_columns([*keys, *(f"shadow_{name}" for name in names)])


def _with_parts(accuracy: pa.Table) -> pa.Table:
    """The rows with the number of references that each answer is scored by, one by one."""
    if "rule" not in accuracy.column_names:
        return accuracy
    all_ = pc.fill_null(pc.equal(accuracy["rule"], "all"), False)
    parts = pc.if_else(all_, pc.list_value_length(accuracy["references"]), 1)
    return accuracy.append_column("parts", parts)


def _counted(means: pa.Table, columns: list[str]) -> pa.Table:
    """Columns of the rows that had something to choose; of all of them, `trivial`, where none had."""
    some, none = means.filter(~pc.field("trivial")), means.filter(pc.field("trivial"))
    none = none.join(some.select(HAYSTACK), HAYSTACK, join_type="left anti")
    there = [name for name in columns if name in means.column_names]
    return pa.concat_tables([some, none]).select([*HAYSTACK, *there, "trivial"])
