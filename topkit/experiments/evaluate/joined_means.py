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
from topkit.experiments.runs.folder_files import TABLES
from topkit.experiments.runs.group_sums import GroupSums
from topkit.experiments.runs.parts import write_part
from topkit.fidelity import ANSWER_KEY

pc: Any = pyarrow.compute
CURVES = tuple(name for name in TABLES if name.startswith("curve/"))
HEADS = "curve/heads"
# Of which rows a table was made: of none that stand beside what is joined.
ROWS = b"rows"
# Means over the rows that have an answer's key, whose number no table keeps.
_UNCOUNTED = {*ANSWER_KEY, *(f"shadow_{name}" for name in ANSWER_KEY)}


def means_alone(run: Path) -> bool:
    """Whether a run is kept by its means, and no rows stand beside them."""
    rows = [path for name in ("accuracy", "fidelity") for path in (run / name).glob("*.parquet")]
    return not rows and (run / CURVES[0] / "rows.parquet").exists()


def join_means(runs: Sequence[Path], out: Path, run: str) -> None:
    """Write the tables of several runs as those of the run `run` in `out`, each haystack once.

    Of heads, which are means over haystacks, recall and mass are weighted by how many rows they are of; hit, w and
    ws are left out where several runs have a cell.
    Raises: InputError for a haystack that two runs have, a table that one of them lacks, and means of another law.
    """
    runs = _each_once(runs)
    for name in CURVES:
        having = [one for one in runs if (one / name / "rows.parquet").exists()]
        if not having:
            continue
        if len(having) < len(runs):
            lacking = next(one for one in runs if one not in having)
            raise InputError(
                f"{lacking} lacks {name}, which {having[0]} has; report it first, or leave it out"
            )
        tables = {one: pq.read_table(one / name / "rows.parquet") for one in having}
        about = _alike(name, tables)
        several = [table.replace_schema_metadata() for table in tables.values()]
        table = _heads(several) if name == HEADS else _concatenated(several, HAYSTACK)
        (out / name).mkdir(parents=True, exist_ok=True)
        write_part(out / name, "rows", table.replace_schema_metadata(about), run=run)


def _each_once(runs: Sequence[Path]) -> list[Path]:
    """The runs, without those whose haystacks all stand in an earlier one, with the same means."""
    kept, first = list[Path](), dict[tuple[Any, ...], tuple[Path, dict[str, Any]]]()
    for run in runs:
        rows = pq.read_table(run / CURVES[0] / "rows.parquet").to_pylist()
        cells = {tuple(row[key] for key in HAYSTACK): row for row in rows}
        twice = [cell for cell in cells if cell in first]
        if twice and len(twice) == len(cells) and all(first[c][1] == cells[c] for c in twice):
            continue
        if twice:
            task, _, _, haystack, indexer, _ = twice[0]
            raise InputError(
                f"{run} and {first[twice[0]][0]} both have haystack {haystack} of {task} ({indexer}), and of means it "
                "would count twice; keep it in one of them, or join their rows"
            )
        first |= {cell: (run, row) for cell, row in cells.items()}
        kept.append(run)
    return kept


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
    sums = GroupSums(HEAD, [*names, "rows"])
    for name in names:
        whole = _with(whole, name, pc.multiply(whole[name], whole["rows"]))
    sums.add(whole)
    groups = sums.table()
    columns = {key: groups[key] for key in HEAD}
    several = pc.greater(groups["rows_count"], 1)
    for name in names:
        mean = pc.divide(groups[f"{name}_sum"], pc.cast(groups["rows_sum"], pa.float64()))
        if name in _UNCOUNTED:
            mean = pc.if_else(several, pa.scalar(None, pa.float64()), mean)
        columns[name] = mean
    table = pa.table({**columns, "rows": groups["rows_sum"]})
    order = [*HEAD, *OF_HEADS, "rows", *(n for n in names if n not in OF_HEADS)]
    order = [name for name in order if name in table.column_names]
    return table.select(order).sort_by([(key, "ascending") for key in HEAD])


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
