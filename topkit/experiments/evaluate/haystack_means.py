"""From a run's rows to two small tables: means per haystack, and per layer and head.

They stand under RUN/curve and are all that a report reads, so that a large run can be kept by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from topkit.errors import InputError
from topkit.experiments.runs.cell_parts import write_rows
from topkit.experiments.runs.fidelity_rows import TABLES
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.parts import read_table
from topkit.experiments.runs.union import sources

# The folders of the two tables.
CONDENSED = ("curve/haystacks", "curve/heads")
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
]
# Of lists that heads share, each judged once.
UNITS = ["recall", "mass"]


def condensed(run: Path, *others: Path) -> tuple[pa.Table, pa.Table]:
    """The tables of haystacks and of heads: of the rows where there are any, else as they stand under RUN/curve.

    Of several runs of one identity, as shards leave them: of the rows of all. Nothing is written.
    Raises: InputError when the folder holds neither, naming a part that is not as the run wrote it, and for
    runs that cannot be joined.
    """
    if others:
        return _joined((run, *others))
    require_intact(run)
    if any((run / "accuracy").glob("*.parquet")):
        fidelity = _of_answers(_observed(run))
        accuracy = _with_parts(read_table(run / "accuracy"))
        return by_haystack(accuracy, fidelity), by_head(fidelity)
    haystacks, heads = (run / name for name in CONDENSED)
    if not haystacks.is_dir():
        raise InputError(f"{run} holds no run: expected {run / 'accuracy'} or {haystacks.parent}")
    return read_table(haystacks), read_table(heads)


def _joined(runs: Sequence[Path]) -> tuple[pa.Table, pa.Table]:
    parts = sources(runs)
    of_answers = [part.rows("accuracy") for part in parts if "accuracy" in part.tables]
    if not of_answers:
        raise InputError(
            f"{runs[0]} and the others hold no answers: a report is of `evaluate` or `study`"
        )
    observed = [part.rows("fidelity") for part in parts if "fidelity" in part.tables]
    observed.append(TABLES["evaluate"].empty_table())
    plain = (table.replace_schema_metadata() for table in observed)
    fidelity = _of_answers(pa.concat_tables(plain, promote_options="permissive"))
    accuracy = (table.replace_schema_metadata() for table in of_answers)
    rows = pa.concat_tables(accuracy, promote_options="permissive")
    return by_haystack(rows, fidelity), by_head(fidelity)


def keep_condensed(run: Path) -> tuple[pa.Table, pa.Table]:
    """The same tables; those of rows are written under RUN/curve."""
    tables, described = condensed(run), require_intact(run)
    if "id" in described and any((run / "accuracy").glob("*.parquet")):
        for name, table in zip(CONDENSED, tables, strict=True):
            write_rows(run, described["id"], name, "rows", table)
    return tables


def by_haystack(accuracy: pa.Table, fidelity: pa.Table) -> pa.Table:
    """A row a cell and haystack: its questions, their mean scores, the mean fidelity observed.

    unit_recall and unit_mass are those of lists that heads share. trivial_rows counts rows whose k covers
    all that is visible: they are left out, unless all are, which `trivial` says.
    """
    keys = [*SETTING, "haystack", *CELL]
    scores = _means(accuracy, [*keys, "wording", "family"], SCORES, "questions")
    shared = fidelity.filter(pc.field("level") != "head")
    units = _counted(shared, keys, UNITS, "units").drop_columns(["units", "trivial"])
    units = units.rename_columns(
        [f"unit_{name}" if name in UNITS else name for name in units.column_names]
    )
    trivial = _means(_of_heads(fidelity).filter(pc.field("trivial")), keys, [], "trivial_rows")
    table = scores.join(_counted(_of_heads(fidelity), keys, METRICS, "rows"), keys)
    table = table.join(units, keys).join(trivial, keys)
    return table.sort_by([(key, "ascending") for key in keys])


def by_head(fidelity: pa.Table) -> pa.Table:
    """A row a cell, layer and query head that had something to choose."""
    keys = [*SETTING, *CELL, "layer", "head"]
    means = _means(_open(_of_heads(fidelity)), keys, ["recall", "mass"], "rows")
    return means.sort_by([(key, "ascending") for key in keys])


def _observed(run: Path) -> pa.Table:
    """The fidelity of all rows of accuracy; none where full attention ran alone, or nothing was observed.

    Fidelity is written first: what has no accuracy beside it is of a job that was not finished.
    """
    names = {path.name for path in (run / "accuracy").glob("*.parquet")}
    names &= {path.name for path in (run / "fidelity").glob("*.parquet")}
    return read_table(run / "fidelity", names=names) if names else TABLES["evaluate"].empty_table()


def _with_parts(accuracy: pa.Table) -> pa.Table:
    """The rows with the number of references that each answer is scored by, one by one."""
    if "rule" not in accuracy.column_names:
        return accuracy
    rules, references = accuracy["rule"].to_pylist(), accuracy["references"].to_pylist()
    parts = [len(r) if rule == "all" else 1 for rule, r in zip(rules, references, strict=True)]
    return accuracy.append_column("parts", pa.array(parts, pa.int32()))


def _of_answers(fidelity: pa.Table) -> pa.Table:
    """Rows at steps of the answer; earlier versions wrote no others."""
    if "steps" not in fidelity.column_names:
        return fidelity
    return fidelity.filter(pc.field("steps") == "answer")


def _of_heads(fidelity: pa.Table) -> pa.Table:
    return fidelity.filter(pc.field("level") == "head")


def _open(fidelity: pa.Table) -> pa.Table:
    """Rows that had something to choose."""
    return fidelity.filter(~pc.field("trivial"))


def _counted(table: pa.Table, keys: list[str], columns: list[str], count: str) -> pa.Table:
    """Means over the rows that had something to choose; over all of them, `trivial`, where none had."""
    trivial = table.filter(pc.field("trivial"))
    some = _means(_open(table), keys, columns, count)
    none = _means(trivial, keys, columns, count).join(
        some.select(keys), keys, join_type="left anti"
    )
    flags = (
        pa.array([flag] * part.num_rows, pa.bool_()) for flag, part in ((False, some), (True, none))
    )
    return pa.concat_tables(
        part.append_column("trivial", flag) for part, flag in zip((some, none), flags, strict=True)
    )


def _means(table: pa.Table, keys: list[str], columns: list[str], count: str) -> pa.Table:
    """Means of the columns that are there, and the number of rows, for each value of the keys."""
    columns = [column for column in columns if column in table.column_names]
    means = table.group_by(keys).aggregate([*((c, "mean") for c in columns), ([], "count_all")])
    names = {f"{column}_mean": column for column in columns} | {"count_all": count}
    return means.rename_columns([names.get(name, name) for name in means.column_names])
