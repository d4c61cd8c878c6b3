"""Runs that are kept by their means alone, joined: of every haystack the means of the run that has it."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from topkit.errors import InputError
from topkit.experiments.evaluate.haystack_means import HAYSTACK, HEAD, OF_HEADS
from topkit.experiments.runs.cells import DENSE
from topkit.experiments.runs.folder_files import TABLES
from topkit.experiments.runs.group_sums import GroupSums
from topkit.experiments.runs.parts import write_part
from topkit.fidelity import ANSWER_KEY

pc: Any = pyarrow.compute
CURVES = tuple(name for name in TABLES if name.startswith("curve/"))
HEADS = "curve/heads"
PART = "rows.parquet"
# Of which rows a table was made: of none that stand beside what is joined.
ROWS = b"rows"
# Means over the rows that have an answer's key, whose number no table keeps.
_UNCOUNTED = {*ANSWER_KEY, *(f"shadow_{name}" for name in ANSWER_KEY)}


def means_alone(run: Path) -> bool:
    """Whether a run is kept by its means, and no rows stand beside them."""
    return not _rows_of(run) and (run / CURVES[0] / PART).exists()


def joined_means(runs: Sequence[Path]) -> dict[str, pa.Table]:
    """The tables of several runs as those of one, each haystack once.

    Cells of one haystack may be of several runs, each of which has full attention too: that of the first is kept. Of
    heads, which are means over haystacks, recall and mass are weighted by how many rows they are of; hit, w and ws are
    left out where several runs have them of a cell.
    Raises: InputError for a haystack that two runs have, a table that one of them lacks, and means of another law.
    """
    for name in CURVES:
        _require_all_or_none(name, runs)
    runs = _each_once(runs)
    joined = dict[str, pa.Table]()
    for name in (name for name in CURVES if (runs[0] / name / PART).exists()):
        tables = {run: pq.read_table(run / name / PART) for run in runs}
        about = _alike(name, tables)
        if name != HEADS:
            tables = _full_attention_once(tables)
            _require_once(name, tables)
        several = [table.replace_schema_metadata() for table in tables.values()]
        table = _heads(several) if name == HEADS else _concatenated(several, HAYSTACK)
        joined[name] = table.replace_schema_metadata(about)
    return joined


def require_no_other(out: Path, joined: Mapping[str, pa.Table]) -> None:
    """Require a folder to hold none of these tables, or what an earlier call wrote of the same.

    Raises: InputError for rows, and for other means.
    """
    if rows := _rows_of(out):
        raise InputError(f"{out} holds rows ({rows[0].parent.name}); join means in a new folder")
    for name in CURVES:
        there = out / name / PART
        if there.exists() and not _same(pq.read_table(there), joined.get(name, pa.table({}))):
            raise InputError(f"{out} holds other means ({name}); join these in a new folder")


def keep_means(out: Path, joined: dict[str, pa.Table], run: str) -> None:
    """Write joined tables as those of the run `run`: haystacks last, without which nothing reads the others."""
    for name in reversed(joined):
        if not (out / name / PART).exists():
            (out / name).mkdir(parents=True, exist_ok=True)
            write_part(out / name, "rows", joined[name], run=run)


def _rows_of(run: Path) -> list[Path]:
    return [path for name in ("accuracy", "fidelity") for path in (run / name).glob("*.parquet")]


def _require_all_or_none(name: str, runs: Sequence[Path]) -> None:
    having = [run for run in runs if (run / name / PART).exists()]
    lacking = [run for run in runs if run not in having]
    if having and lacking:
        raise InputError(
            f"{lacking[0]} lacks {name}, which {having[0]} has; report it first, or leave it out"
        )


def _each_once(runs: Sequence[Path]) -> list[Path]:
    """The runs, without those whose haystacks all stand in earlier ones, with the same means."""
    kept, first = list[Path](), dict[tuple[Any, ...], dict[str, str]]()
    for run in runs:
        rows = pq.read_table(run / CURVES[0] / PART).to_pylist()
        cells = {_cell(row): _means(row) for row in rows}
        if not cells or any(first.get(cell) != means for cell, means in cells.items()):
            kept.append(run)
        first = {**cells, **first}
    return kept


def _cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in HAYSTACK)


def _means(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as text, in which NaN is NaN's equal, and what is not there is as what is null."""
    return {name: repr(value) for name, value in row.items() if value is not None}


def _full_attention_once(tables: Mapping[Path, pa.Table]) -> dict[Path, pa.Table]:
    seen, kept = set[tuple[Any, ...]](), dict[Path, pa.Table]()
    for run, table in tables.items():
        cells = list(map(_cell, table.select(HAYSTACK).to_pylist()))
        dense = [cell[HAYSTACK.index("indexer")] == DENSE for cell in cells]
        again = [d and cell in seen for d, cell in zip(dense, cells, strict=True)]
        seen |= {cell for cell, d in zip(cells, dense, strict=True) if d}
        kept[run] = table.filter(pa.array([not a for a in again], pa.bool_()))
    return kept


def _require_once(name: str, tables: Mapping[Path, pa.Table]) -> None:
    first = dict[tuple[Any, ...], Path]()
    for run, table in tables.items():
        for cell in map(_cell, table.select(HAYSTACK).to_pylist()):
            if cell in first:
                task, _, _, haystack, indexer, _ = cell
                raise InputError(
                    f"{run} and {first[cell]} both have haystack {haystack} of {task} ({indexer}, {name}), and of means "
                    "it would count twice; keep it in one of them, or join their rows"
                )
            first[cell] = run


def _same(one: pa.Table, other: pa.Table) -> bool:
    alike = one.schema.equals(other.schema, check_metadata=True)
    return alike and list(map(_means, one.to_pylist())) == list(map(_means, other.to_pylist()))


def _alike(name: str, tables: Mapping[Path, pa.Table]) -> dict[bytes, bytes]:
    """What all tables say of themselves, but of which rows they are made."""
    said = {
        run: {key: value for key, value in (table.schema.metadata or {}).items() if key != ROWS}
        for run, table in tables.items()
    }
    (where, about), *others = said.items()
    for run, its in others:
        if its != about:
            raise InputError(
                f"{name} of {run} and of {where} are not of one law, or not of the same reading heads: they are not mixed"
            )
    return about


def _concatenated(tables: Sequence[pa.Table], keys: Sequence[str]) -> pa.Table:
    joined = pa.concat_tables(tables, promote_options="permissive")
    return joined.sort_by([(key, "ascending") for key in keys])


def _heads(tables: Sequence[pa.Table]) -> pa.Table:
    whole = _concatenated(tables, HEAD)
    names = [name for name in whole.column_names if name not in (*HEAD, "rows")]
    for name in names:
        # Of how many rows: of none where a run has no such mean.
        of = pc.if_else(pc.is_valid(whole[name]), whole["rows"], pa.scalar(None, pa.int64()))
        whole = whole.append_column(_of(name), of)
        whole = _with(whole, name, pc.multiply(whole[name], whole["rows"]))
    sums = GroupSums(HEAD, ["rows", *names, *map(_of, names)])
    sums.add(whole)
    groups = sums.table()
    columns = {key: groups[key] for key in HEAD}
    for name in names:
        mean = pc.divide(groups[f"{name}_sum"], pc.cast(groups[f"{_of(name)}_sum"], pa.float64()))
        if name in _UNCOUNTED:
            several = pc.greater(groups[f"{name}_count"], 1)
            mean = pc.if_else(several, pa.scalar(None, pa.float64()), mean)
        columns[name] = mean
    table = pa.table({**columns, "rows": groups["rows_sum"]})
    order = [*HEAD, *OF_HEADS, "rows", *(n for n in names if n not in OF_HEADS)]
    order = [name for name in order if name in table.column_names]
    return table.select(order).sort_by([(key, "ascending") for key in HEAD])


def _of(name: str) -> str:
    return f"rows of {name}"


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
