"""Tables as folders of Parquet parts, one part a job, named by the hash of the job's inputs.

A part appears whole or not at all, so that a rerun skips what exists and a crash loses only the
part under way.
"""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from topkit.errors import InputError
from topkit.experiments.runs import manifest
from topkit.experiments.runs.dictionaries import plain

Rows = Sequence[Mapping[str, Any]]
# Bytes that a part takes beside its rows: names and statistics of about thirty columns.
PART = 8 << 10
# Rows of a group of a part, at most.
GROUP = 1 << 20
# Rows that are read at a time.
BATCH = 1 << 17


def digest(inputs: Any) -> str:
    """A short name for JSON-like inputs: equal inputs, equal name, on every machine."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def write_whole(path: Path, write: Callable[[Path], object], *, parents: bool = True) -> None:
    """Let `write` fill a temporary file, then put it in place at once; `parents` makes its folder.

    Raises: InputError when the disk is full; whatever stood at `path` still stands then. Without
    `parents`, also when the folder is no longer there.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may have one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if not path.parent.is_dir():
            raise InputError(
                f"{path.parent} was renamed or removed while it was written"
            ) from error
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; nothing was kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_part(
    folder: Path, name: str, table: pa.Table, *, run: str = "", parents: bool = True
) -> Path:
    """Write one part of the table kept in `folder`, and enter it in the folder's manifest.

    run: the id of the run that it is of.
    """
    path = folder / f"{name}.parquet"

    def write(to: Path) -> None:
        # Dictionaries are how strings are held, not what a reader of the file is to find.
        with pq.ParquetWriter(to, plain(table.slice(0, 0)).schema, compression="zstd") as file:
            for begin in range(0, max(table.num_rows, 1), GROUP):
                file.write_table(plain(table.slice(begin, GROUP)))
        manifest.enter(folder, path.name, manifest.sha256(to), run)

    write_whole(path, write, parents=parents)
    return path


def copy_part(part: Path, folder: Path, run: str) -> Path:
    """Take a part of another run into a table, and enter it in the folder's manifest."""
    path = folder / part.name

    def write(to: Path) -> None:
        shutil.copyfile(part, to)
        manifest.enter(folder, path.name, manifest.sha256(to), run)

    write_whole(path, write, parents=False)
    return path


def paths_of(folder: Path, names: Collection[str] | None = None) -> list[Path]:
    """The parts of a table, or those of some file names, in the order of their names.

    Raises: InputError when there is none.
    """
    parts = sorted(Path(folder).glob("*.parquet"))
    parts = [part for part in parts if names is None or part.name in names]
    if not parts:
        raise InputError(f"no table in {folder}: expected *.parquet files there")
    return parts


def batches(
    parts: Iterable[Path], columns: list[str] | None = None, labels: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The rows of some parts, at most BATCH at a time; columns that a part lacks are left out.

    labels: columns of strings that are wanted as dictionaries.
    Raises: InputError when one cannot be read (the part is named).
    """
    for part in parts:
        with _read(part):
            head = pq.read_metadata(part)
            there = [name for name in labels if name in head.schema.names]
            with pq.ParquetFile(part, metadata=head, read_dictionary=there) as file:
                for batch in file.iter_batches(BATCH, columns=columns):
                    yield pa.Table.from_batches([batch])


def read_table(
    folder: Path, columns: list[str] | None = None, names: Collection[str] | None = None
) -> pa.Table:
    """All parts of a table, or those of some file names, in the order of their names.

    Raises: InputError when there is none, or when one cannot be read (the part is named).
    """
    tables: list[pa.Table] = []
    for part in paths_of(folder, names):
        with _read(part):
            tables.append(pq.read_table(part, columns=columns))
    return pa.concat_tables(tables, promote_options="permissive")


@contextmanager
def _read(part: Path) -> Generator[None]:
    """Raises: InputError naming a part that cannot be read."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {part}: {error}; delete it and run again") from error
