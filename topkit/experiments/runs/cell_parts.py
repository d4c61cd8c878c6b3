"""The parts of a run's tables: a job's rows of some cells, and which cells are done."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topkit.documents import parse_json
from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.identity import Contents, contents, files_of, within
from topkit.experiments.runs.jobs import is_worker
from topkit.experiments.runs.parts import digest, write_part
from topkit.grammar import Named


def write_rows(
    out: Path,
    run: str,
    table: str,
    name: str,
    rows: pa.Table,
    things: Iterable[Named] = (),
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Write a part of a run's table, once all that its rows are made of is what it was at the start.

    things: the indexers and the task of the rows; identity: as the job itself read model, text, ...
    Raises: InputError when the folder is no longer the run's (renamed, removed, replaced), and naming
    what has changed in the meantime.
    """
    described = run_file.read(out)
    if described is None or described.get("id") != run:
        raise InputError(
            f"{out} was renamed or removed while a run wrote to it; nothing more is kept"
        )
    _require_unchanged(described, things, identity or {})
    folder = out
    for word in Path(table).parts:
        folder /= word
        with suppress(FileNotFoundError):  # said below
            folder.mkdir(exist_ok=True)
    write_part(folder, name, rows, run=run, parents=False)


def _require_unchanged(
    described: Mapping[str, Any], things: Iterable[Named], identity: Mapping[str, Any]
) -> None:
    there = described["identity"]
    apart = [name for name, value in identity.items() if there.get(name) != value]
    if apart:
        raise InputError(
            f"{' and '.join(apart)} changed while the run went on; put back what it was, or use "
            "another folder"
        )
    for thing in things:
        name = repr(thing)
        before = described["contents"].get(name, {})
        if files_of(thing) != before.get("files"):
            raise InputError(f"a file that {name} reads was changed while the run went on")
        # A class of the main script comes to another machine as it is, without its file.
        own = all(type(one).__module__ != "__main__" for one in within(thing))
        if is_worker() and own and _as_imported(thing, described["id"]) != before:
            raise InputError(f"the code of {name} was changed while the run went on")


@lru_cache(maxsize=256)
def _as_imported(thing: Named, run: str) -> Contents:
    """A thing's contents when this worker first met it: its code is not read again."""
    return contents(thing)


def part_name(job: str, cells: Sequence[Cell]) -> str:
    """The name of a part that holds some cells of a job; the job's stands first."""
    return name_of(job, [_pair(cell) for cell in cells])


def name_of(job: str, cells: Sequence[tuple[str, str]]) -> str:
    """As `part_name`, of cells as tables name them: (indexer, budget)."""
    return f"{job}-{digest([{'indexer': indexer, 'budget': budget} for indexer, budget in cells])}"


def with_cells(table: pa.Table, cells: Sequence[Cell]) -> pa.Table:
    """The table with the names of its cells in the file's metadata."""
    return naming(table, [_pair(cell) for cell in cells])


def naming(table: pa.Table, cells: Sequence[tuple[str, str]]) -> pa.Table:
    """As `with_cells`, of cells as tables name them: (indexer, budget)."""
    return table.replace_schema_metadata({"cells": json.dumps([list(cell) for cell in cells])})


def _pair(cell: Cell) -> tuple[str, str]:
    return cell.columns["indexer"], cell.columns["budget"]


def parts_of(folder: Path, jobs: Collection[str]) -> set[str]:
    """The file names of the parts that hold cells of some jobs."""
    names = (path.name for path in folder.glob("*.parquet"))
    return {name for name in names if name.partition("-")[0] in jobs}


def done(folder: Path, but: Collection[str] = ()) -> Iterator[tuple[str, str, str]]:
    """(job, indexer, budget) of every cell that a part of the table in `folder` holds.

    but: file names of parts that do not count.
    Raises: InputError naming a part that cannot be read.
    """
    for path in sorted(folder.glob("*.parquet")):
        if path.name not in but:
            cells = cells_of(path)
            if cells is None:
                raise InputError(f"cannot read {path}; delete it and run again")
            yield from cells


def doubled(folder: Path) -> Iterator[str]:
    """A line a part whose cells stand in another part too, as two runs at once would leave them."""
    first: dict[tuple[str, str, str], Path] = {}
    for path in sorted(folder.glob("*.parquet")):
        twice = [cell for cell in cells_of(path) or () if first.setdefault(cell, path) != path]
        if twice:
            yield f"{path} holds rows of {first[twice[0]].name} again; delete it and run again"


def cells_of(path: Path) -> list[tuple[str, str, str]] | None:
    """(job, indexer, budget) of the cells that a part names; None where it names none."""
    try:
        text = (pq.read_schema(path).metadata or {})[b"cells"]
        cells = parse_json(text, [(str, str)], path, "")
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return [(path.name.partition("-")[0], indexer, budget) for indexer, budget in cells]
