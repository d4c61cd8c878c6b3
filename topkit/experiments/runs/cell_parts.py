"""The parts of a run's tables: a job's rows of some cells, and which cells are done."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from topkit.documents import parse_json
from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.identity import files_of
from topkit.experiments.runs.parts import digest, write_part


def write_rows(
    out: Path, run: str, table: str, name: str, rows: pa.Table, cells: Sequence[Cell] = ()
) -> None:
    """Write a part of a run's table, once its cells' indexers still read what they did at the start.

    Raises: InputError when the folder is no longer the run's (renamed, removed, replaced), and naming an
    indexer whose files have changed in the meantime.
    """
    described = run_file.read(out)
    if described is None or described.get("id") != run:
        raise InputError(
            f"{out} was renamed or removed while a run wrote to it; nothing more is kept"
        )
    recipes = {cell.name: cell.indexer for cell in cells if cell.indexer is not None}
    for recipe, its in recipes.items():
        now = files_of(its)
        before = described["contents"].get(recipe, {}).get("files")
        if now != before:
            raise InputError(f"a file that {recipe} reads was changed while the run went on")
    folder = out
    for word in Path(table).parts:
        folder /= word
        with suppress(FileNotFoundError):  # said below
            folder.mkdir(exist_ok=True)
    write_part(folder, name, rows, run=run, parents=False)


def part_name(job: str, cells: Sequence[Cell]) -> str:
    """The name of a part that holds some cells of a job; the job's stands first."""
    return f"{job}-{digest([cell.columns for cell in cells])}"


def with_cells(table: pa.Table, cells: Sequence[Cell]) -> pa.Table:
    """The table with the names of its cells in the file's metadata."""
    names = json.dumps([list(cell.columns.values()) for cell in cells])
    return table.replace_schema_metadata({"cells": names})


def done(folder: Path, but: Collection[str] = ()) -> Iterator[tuple[str, str, str]]:
    """(job, indexer, budget) of every cell that a part of the table in `folder` holds.

    but: file names of parts that do not count.
    Raises: InputError naming a part that cannot be read.
    """
    for path in sorted(folder.glob("*.parquet")):
        if path.name not in but:
            cells = _cells(path)
            if cells is None:
                raise InputError(f"cannot read {path}; delete it and run again")
            yield from cells


def doubled(folder: Path) -> Iterator[str]:
    """A line a part whose cells stand in another part too, as two runs at once would leave them."""
    first: dict[tuple[str, str, str], Path] = {}
    for path in sorted(folder.glob("*.parquet")):
        twice = [cell for cell in _cells(path) or () if first.setdefault(cell, path) != path]
        if twice:
            yield f"{path} holds rows of {first[twice[0]].name} again; delete it and run again"


def _cells(path: Path) -> list[tuple[str, str, str]] | None:
    """The cells that a part names; None where it names none."""
    try:
        text = (pq.read_schema(path).metadata or {})[b"cells"]
        cells = parse_json(text, [(str, str)], path, "")
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return [(path.name.partition("-")[0], indexer, budget) for indexer, budget in cells]
