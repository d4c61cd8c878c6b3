"""A run's folder: its identity, its lock, and the cells that are done."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import topkit
from topkit.documents import parse_json, read_json
from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.parts import digest, write_whole

# Files in a run's own folder; temporary files that a killed run left bear these names.
FILES = ("run.json", "predictions.jsonl", "study.json", "report.html")
LOCK = ".lock"
# What is read of run.json, of any version; all that a run says of itself may stand beside it.
RUN = {
    "identity": {"topkit?": str, str: object},
    "asked": [dict],
    "machine?": {"platform?": str, "processors?": int | None, "gpu?": str | None},
    "versions?": {str: str},
    "commit?": str | None,
}


@contextmanager
def claim(
    out: Path, identity: Mapping[str, Any], tables: Sequence[str], *, force: bool = False
) -> Generator[None]:
    """Keep a folder, empty or of a run of the same identity, to this process; `force` empties it.

    The run's own workers may write there. Temporary files of a killed run are deleted.
    Raises: InputError when it holds another run, or another process writes there: rows of two must not
    mix.
    """
    with locked(out):
        halves = [half for name in tables for half in (out / name).glob(".*.tmp")]
        for half in [*halves, *(half for name in FILES for half in out.glob(f".{name}.*.tmp"))]:
            half.unlink(missing_ok=True)
        if force:
            parts = (part for name in tables for part in (out / name).glob("*.parquet"))
            for old in [*(out / name for name in FILES), *parts]:
                old.unlink(missing_ok=True)
        require_same(out, identity)
        yield


@contextmanager
def locked(out: Path) -> Generator[None]:
    """Keep a folder to this process, and make it where there is none.

    The kernel releases the lock however this process ends; the file that stays means nothing.
    Raises: InputError when another process has the lock, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    with open(out / LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {out}; wait for its end, or use another folder"
            ) from None
        yield


def require_same(out: Path, identity: Mapping[str, Any]) -> None:
    """Raises: InputError when the folder holds a run of another identity, or one that cannot be read."""
    path = out / "run.json"
    if not path.exists():
        return
    there = read_json(path, RUN, "use another folder, or --force")["identity"]
    apart = [name for name in {**there, **identity} if there.get(name) != identity.get(name)]
    if "topkit" in apart:
        raise InputError(
            f"{out} was written by topkit {there.get('topkit')}, and this is {identity.get('topkit')}: "
            "their rows are not mixed; use another folder, or --force (`topkit report` reads either)"
        )
    if apart:
        raise InputError(
            f"{out} holds another run ({', '.join(apart)} differ); use another folder, or --force"
        )


def describe(out: Path, identity: Mapping[str, Any], **request: Any) -> None:
    """Write run.json: what the rows are made from, by what, and every request for them so far."""
    path = out / "run.json"
    before = read_json(path, RUN, "use another folder")["asked"] if path.exists() else []
    gpu = torch.cuda.get_device_name() if str(identity.get("device")) == "cuda" else None
    content = {
        "identity": dict(identity),
        "asked": before if request in before else [*before, request],
        "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "gpu": gpu},
        "versions": _versions(),
        "commit": commit(Path(topkit.__file__).parents[1]),
    }
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


def _versions() -> dict[str, str]:
    """Of what rows may depend on, as far as it is installed."""
    versions = {
        "topkit": topkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("transformers", "pyarrow", "faiss-cpu"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def commit(source: Path) -> str | None:
    """The commit of a git checkout, "-dirty" where files differ from it; None where there is none.

    A folder of packages may lie within another project's checkout, whose commit says nothing here.
    """
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", source, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def part_name(job: str, cells: Sequence[Cell]) -> str:
    """The name of a part that holds some cells of a job; the job's stands first."""
    return f"{job}-{digest([cell.columns for cell in cells])}"


def with_cells(table: pa.Table, cells: Sequence[Cell]) -> pa.Table:
    """The table with the names of its cells in the file's metadata."""
    names = json.dumps([list(cell.columns.values()) for cell in cells])
    return table.replace_schema_metadata({"cells": names})


def done(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(job, indexer, budget) of every cell that a part of the table in `folder` holds.

    Raises: InputError naming a part that cannot be read.
    """
    for path in folder.glob("*.parquet"):
        remedy = "delete it and run again"
        try:
            text = (pq.read_schema(path).metadata or {})[b"cells"]
        except (OSError, KeyError, ValueError, pa.ArrowException):
            raise InputError(f"cannot read {path}; {remedy}") from None
        cells = parse_json(text, [(str, str)], f"the cells of {path}", remedy)
        yield from ((path.name.partition("-")[0], *cell) for cell in cells)
