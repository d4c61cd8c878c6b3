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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topkit.errors import InputError

Rows = Sequence[Mapping[str, Any]]
# Bytes that a part takes beside its rows: names and statistics of about thirty columns.
PART = 8 << 10


def digest(inputs: Any) -> str:
    """A short name for JSON-like inputs: equal inputs, equal name, on every machine."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it in place at once.

    Raises: InputError when the disk is full; whatever stood at `path` still stands then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; nothing was kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_part(folder: Path, name: str, table: pa.Table) -> Path:
    """Write one part of the table kept in `folder`."""
    path = folder / f"{name}.parquet"
    write_whole(path, lambda to: pq.write_table(table, to, compression="zstd"))
    return path


def read_table(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All parts of a table, in the order of their names.

    Raises: InputError when there is none, or when one cannot be read (the part is named).
    """
    parts = sorted(Path(folder).glob("*.parquet"))
    if not parts:
        raise InputError(f"no table in {folder}: expected *.parquet files there")
    tables = []
    for part in parts:
        try:
            tables.append(pq.read_table(part, columns=columns))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot read {part}: {error}; delete it and run again") from error
    return pa.concat_tables(tables, promote_options="permissive")
