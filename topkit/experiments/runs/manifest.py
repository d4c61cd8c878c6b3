"""Which parts a run wrote, and their digests: one file a writer beside the parts of a table.

A part is entered before it takes its name, so that a part without an entry was never the run's own. An
entry without its part is one that a killed run did not put in place, or one that was deleted.
"""

# pyright: strict
from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from topkit.documents import SHA256, FileName, OneOf, parse_json, read_bytes
from topkit.errors import InputError

# Names with an underscore in front are no rows to those that read a folder of Parquet.
FILES = "_manifest-*.jsonl"
FORMAT = {"format": "topkit-parts", "version": 1}
# A manifest's first line, and the others.
HEAD = {"format": OneOf("topkit-parts"), "version": OneOf(1), "run": str}
ENTRY = {"part": FileName(), "sha256": SHA256, "withdrawn?": bool}
# The entries of some parts: (file name, sha256), as often as they stand, minus what was withdrawn.
Entries = Counter[tuple[str, str]]

_GONE = "is gone; run the same command again"
_ALIEN = "was not written by this run: no manifest lists it; move it away, or run with --force"
_ALTERED = "was altered (sha256); delete it and run the same command again, or run with --force"

# A writer: this process, in one folder of one run.
_WRITERS: dict[tuple[Path, str], str] = {}


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def enter(folder: Path, name: str, digest: str, run: str) -> None:
    """Enter a part that is about to take its name; `run` is the run's id."""
    _append(folder, run, {"part": name, "sha256": digest})


def settle(folder: Path, run: str) -> None:
    """Withdraw the entries of parts that are not there; the folder is this process's alone."""
    for name, digest in entries(folder, run).elements():
        if not (folder / name).exists():
            _append(folder, run, {"part": name, "sha256": digest, "withdrawn": True})


def _append(folder: Path, run: str, entry: dict[str, Any]) -> None:
    """Add a line to this writer's manifest: whole in one call, and on the disk."""
    key = folder.absolute(), run
    writer = _WRITERS.setdefault(key, f"_manifest-{uuid4().hex[:16]}.jsonl")
    try:
        with open(folder / writer, "ab", buffering=0) as file:
            head = [] if file.tell() else [{**FORMAT, "run": run}]
            file.write("".join(json.dumps(line) + "\n" for line in (*head, entry)).encode())
            os.fsync(file.fileno())
    except OSError:
        # The disk is full, say: nothing may follow a line that is not whole.
        _WRITERS.pop(key, None)
        raise


def entries(folder: Path, run: str) -> Entries:
    """What the manifests of a folder vouch for.

    Raises: InputError naming a manifest that cannot be read, or is another run's.
    """
    live: Entries = Counter()
    for path in sorted(folder.glob(FILES)):
        for entry in _lines(path, run):
            live[entry["part"], entry["sha256"]] += -1 if entry.get("withdrawn") else 1
    return +live


def _lines(path: Path, run: str) -> Iterator[dict[str, Any]]:
    """A manifest's entries. What follows its last line's end is of a writer that was killed there."""
    remedy = "run with --force"
    whole, _, _ = read_bytes(path, remedy).rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    for number, line in enumerate(lines):
        entry = parse_json(line, ENTRY if number else HEAD, f"{path}, line {number + 1}", remedy)
        if number:
            yield entry
        elif entry["run"] != run:
            raise InputError(
                f"{path} is of another run, copied into this folder; move it away, or {remedy}"
            )


@dataclass(frozen=True)
class Fault:
    """What is wrong with a part; kind: manifest, alien, altered, unreadable or gone."""

    kind: str
    text: str


def faults(folder: Path, run: str) -> list[Fault]:
    """What is wrong with the parts of a table, a line a file. Right at any time, also while the run writes.

    The parts are listed before the manifests are read, so that each has its entry by then.
    """
    parts = sorted(folder.glob("*.parquet"))
    try:
        live = entries(folder, run)
    except InputError as error:
        return [Fault("manifest", str(error))]
    absent = sorted(gone(folder, live))
    return [*_wrong(parts, live), *(Fault("gone", f"{folder / name} {_GONE}") for name in absent)]


def _wrong(parts: list[Path], live: Entries) -> Iterator[Fault]:
    names = {name for name, _ in live}
    for path in parts:
        if path.name not in names:
            yield Fault("alien", f"{path} {_ALIEN}")
            continue
        try:
            digest = sha256(path)
        except FileNotFoundError:
            continue  # dropped in the meantime
        except OSError as error:
            yield Fault("unreadable", f"cannot read {path}: {error.strerror}")
            continue
        if (path.name, digest) not in live:
            yield Fault("altered", f"{path} {_ALTERED}")


def gone(folder: Path, live: Entries) -> set[str]:
    """The names of parts that have an entry and are not there, nor about to take their place."""
    absent = {name for name, _ in live if not (folder / name).exists()}
    absent = {name for name in absent if not any(folder.glob(f".{name}.*.tmp"))}
    # One that took its place between the two looks is there now.
    return {name for name in absent if not (folder / name).exists()}
