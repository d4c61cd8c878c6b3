"""A run's folder: whose it is, its tables, and whether they are as the run wrote them."""

# pyright: strict
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topkit.errors import InputError
from topkit.experiments.runs import identity as things
from topkit.experiments.runs import manifest, run_file
from topkit.experiments.runs.cell_parts import doubled
from topkit.experiments.runs.folder_files import TABLES, Before, clear, parts
from topkit.experiments.runs.identity import Contents
from topkit.experiments.runs.lock import Hold, locked, shared
from topkit.experiments.runs.shards import WHOLE, Shard


@dataclass(frozen=True)
class Who:
    """A writer of a folder: a shard of what `of` names; `waits`: for another that writes there."""

    shard: Shard = WHOLE
    of: str = ""
    waits: bool = False


@contextmanager
def claim(
    out: Path,
    identity: Mapping[str, Any],
    contents: Mapping[str, Contents] | None = None,
    who: Who | None = None,
    *,
    force: bool = False,
) -> Generator[Hold]:
    """Keep a folder, empty or of a run of the same identity, to this process; `force` empties it.

    The run's own workers may write there, and beside a shard the other shards of the same run: whoever has
    prepared its jobs lets them begin by `Hold.begun`. Temporary files of a killed run
    are deleted. Where nothing was written in the end, the folder is as it was.
    Raises: InputError when it holds another run or a capture, when a part is not as the run wrote it, or
    when another process writes there: rows of two must not mix.
    """
    require_no_capture(out)
    who = who or Who()
    lock = locked(out, who.waits) if who.shard.whole else shared(out, who.shard.name, who.of)
    with lock as hold:
        require_same(out, identity, contents, force=force)
        if hold.alone:
            clear(out, force)
        before = Before.of(out)
        try:
            yield hold
        except BaseException:
            if hold.last() and not set(parts(out)) - before.parts:
                before.restore(out)
            raise
        # A worker that was killed as it wrote left its half of a part; its job was done again.
        if hold.last():
            clear(out, everything=False)


def require_same(
    out: Path,
    identity: Mapping[str, Any],
    contents: Mapping[str, Contents] | None = None,
    *,
    force: bool = False,
) -> None:
    """Require a folder to hold nothing, or a run of the same identity that is as it was written.

    contents: of the indexers and tasks that are to run; `force`: the folder is to be emptied first.
    Raises: InputError when it holds another run, an indexer whose content has changed (by its name), a
    part that was altered or copied in (by its file), rows of no run, or a capture.
    """
    require_no_capture(out)
    if force:
        return
    run = run_file.read(out)
    if run is None:
        require_nobodys(out)
        return
    there = run["identity"]
    apart = [name for name in {**there, **identity} if there.get(name) != identity.get(name)]
    if "topkit" in apart:
        raise InputError(
            f"{out} was written by {writer(run)}, and this is topkit {identity.get('topkit')}: "
            "their rows are not mixed; use another folder, or --force (`topkit report` reads either)"
        )
    if "id" not in run:
        raise InputError(
            f"{out} was written before rows had digests: nothing vouches for its rows; use another "
            "folder, or --force (`topkit report` reads it)"
        )
    if apart:
        raise InputError(
            f"{out} holds another run ({', '.join(apart)} differ); use another folder, or --force"
        )
    things.require_same(out, run["contents"], contents or {})
    raise_first(faults(out, run, "gone"))


def writer(run: Mapping[str, Any]) -> str:
    """The topkit that wrote a run."""
    return (
        f"topkit {run['identity']['topkit']}"
        if "topkit" in run["identity"]
        else "an earlier topkit"
    )


def require_no_capture(out: Path) -> None:
    """Raises: InputError for the folder of a capture: rows are not written among its tensors."""
    if (out / "manifest.json").exists() or any(out.glob("sample-*.safetensors")):
        raise InputError(f"{out} holds a capture; write the run into another folder")


def require_nobodys(out: Path) -> None:
    """Raises: InputError naming a part of a folder without run.json: its rows belong to no run."""
    stray = next(parts(out), None)
    # Another shard may have begun the run just now.
    if stray is not None and not (out / run_file.NAME).exists():
        raise InputError(
            f"{stray} belongs to no run: {out / run_file.NAME} is missing; use another folder, or --force"
        )


def require_intact(out: Path) -> dict[str, Any]:
    """Require the rows of a run to be as it wrote them; returns what run.json says.

    A run of an earlier topkit carries no digests, and is read as it is; it has no "id".
    Raises: InputError naming a part that was altered, copied in or deleted, and for rows of no run.
    """
    run = run_file.read(out)
    if run is None:
        require_nobodys(out)
        raise InputError(f"{out} holds no run: expected {out / run_file.NAME}")
    raise_first(faults(out, run))
    return run


def faults(out: Path, run: Mapping[str, Any], *but: str) -> list[str]:
    """What is wrong with a run's parts, a line a file; `but` names kinds of fault that do not count."""
    if "id" not in run:
        later = [path for name in TABLES for path in (out / name).glob(manifest.FILES)]
        return (
            [f"{later[0]} is not of this run, which has no digests; move it away"] if later else []
        )
    every = [fault for name in TABLES for fault in manifest.faults(out / name, run["id"])]
    wrong = [fault.text for fault in every if fault.kind not in but]
    return wrong or [line for name in TABLES for line in doubled(out / name)]


def raise_first(lines: Sequence[str]) -> None:
    """Raises: InputError with the first line, and the number of the others."""
    if lines:
        others = f" (and {len(lines) - 1} more, see `topkit verify`)" if lines[1:] else ""
        raise InputError(f"{lines[0]}{others}")


def gone(out: Path, table: str) -> set[str]:
    """The file names of a table's parts that were written, and are not there."""
    run = run_file.read(out)
    if run is None or "id" not in run:
        return set()
    return manifest.gone(out / table, manifest.entries(out / table, run["id"]))


def settle(out: Path, run: str) -> None:
    """Forget the parts of a run that are not there; whoever claimed the folder makes them again."""
    for name in TABLES:
        manifest.settle(out / name, run)
