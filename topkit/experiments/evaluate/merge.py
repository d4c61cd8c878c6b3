"""Runs of one identity, as shards leave them, joined into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.evaluate.finish import finish
from topkit.experiments.evaluate.halves import drop_halves
from topkit.experiments.evaluate.joined_means import (
    joined_means,
    keep_means,
    means_alone,
    require_no_other,
)
from topkit.experiments.runs import folder, run_file
from topkit.experiments.runs.cell_parts import name_of, naming
from topkit.experiments.runs.parts import copy_part, write_part, write_whole
from topkit.experiments.runs.union import Source, require_alike, sources

# What a study says of itself beside its rows.
STUDY = "study.json"
# Kinds of studies whose models are joined by a room above this one, which is therefore named and not imported.
_OWN = dict.fromkeys(("topk-sft", "entropy"), "topkit.experiments.train.joined_arms")


def merge(runs: str | Path | Sequence[str | Path], out: str | Path) -> Path:
    """Join runs of one identity, or studies of several runs, in a folder; an earlier call is gone on with.

    Rows that several runs have must be equal, and stand there once. The runs stay as they are, and may
    still be written to: what they have by now is taken. Runs that are kept by their means alone, under RUN/curve,
    are joined by these: each must have haystacks of its own. Of studies that train what was found of each model is
    joined, and no weights.
    Returns: the folder.
    Raises: InputError for runs of other identities, a part that is not as its run wrote it, different rows
    of one cell, and a folder that is one of the runs, lies within one, or holds another run.
    """
    several = [runs] if isinstance(runs, str | Path) else list(runs)
    places = [path_of(run, "the folder of a run") for run in several]
    if not places:
        raise InputError("no run to merge; name the folders of one or more")
    out = path_of(out, "a folder for the run")
    _require_apart(places, out)
    kinds = [_kind(place) for place in places]
    own = next((_OWN[kind] for kind in kinds if kind in _OWN), None)
    if own is not None:
        import_module(own).merge(places, out)
        return out
    _require_joinable(places, kinds)
    within = _runs_within(places)
    for name in within:
        merge([run / name for run in places if (run / name / run_file.NAME).exists()], out / name)
    if within and not any((run / run_file.NAME).exists() for run in places):
        _keep_study(places, out)
    else:
        _merge(places, out)
    return out


def _kind(place: Path) -> str | None:
    """The kind of a study that has rows of its own."""
    kind = (run_file.read(place) or {"identity": {}})["identity"].get("kind")
    return None if kind is None else str(kind)


def _require_joinable(places: Sequence[Path], kinds: Sequence[str | None]) -> None:
    """Raises: InputError for a study whose rows are its own kind's, which are not joined."""
    for place, kind in zip(places, kinds, strict=True):
        if kind is not None:
            raise InputError(
                f"{place} holds a study {kind}, which is not merged: its shards write into one folder"
            )


def _runs_within(places: Sequence[Path]) -> list[str]:
    """The runs below the folders of a study: its pilot, and those of its models and seeds."""
    if not any((run / STUDY).exists() for run in places):
        return []
    found = [path for run in places for path in run.rglob(run_file.NAME) if path.parent != run]
    names = (
        str(path.parent.relative_to(run))
        for run in places
        for path in found
        if path.is_relative_to(run)
    )
    return sorted(dict.fromkeys(names))


def _merge(places: Sequence[Path], out: Path) -> None:
    if all(map(means_alone, places)):
        _merge_means(places, out)
        return
    sources(places)  # what cannot be joined is refused before anything is written
    described = [folder.require_intact(run) for run in places]
    contents = {name: its for one in described for name, its in one["contents"].items()}
    with folder.claim(out, described[0]["identity"], contents):
        run = run_file.join(out, described)
        if any((one / "accuracy").is_dir() for one in places):
            drop_halves(out)
        folder.settle(out, run)
        for source in sources([out, *places]):
            if source.run != out:
                _take(source, out, run)
        _keep_study(places, out)
        if (out / "accuracy").is_dir():
            finish(out)


def _merge_means(places: Sequence[Path], out: Path) -> None:
    described = {run: folder.require_intact(run) for run in places}
    require_alike(described)
    means = joined_means(places)  # what cannot be joined is refused before anything is written
    contents = {name: its for one in described.values() for name, its in one["contents"].items()}
    with folder.claim(out, next(iter(described.values()))["identity"], contents):
        require_no_other(out, means)
        run = run_file.join(out, list(described.values()))
        folder.settle(out, run)
        _keep_study(places, out)
        keep_means(out, means, run)


def _require_apart(runs: Sequence[Path], out: Path) -> None:
    for run in runs:
        if out.resolve().is_relative_to(run.resolve()):
            raise InputError(
                f"{out} is {run} or lies within it, and runs stay as they are; merge into another folder"
            )


def _take(source: Source, out: Path, run: str) -> None:
    """Write a part, or its cells that are new; the table that says what is done comes last."""
    for table in reversed(source.tables):
        (out / table).mkdir(parents=True, exist_ok=True)
        if source.whole:
            copy_part(source.run / table / source.name, out / table, run)
        else:
            pairs = [(indexer, budget) for _, indexer, budget in source.cells]
            rows = naming(source.rows(table), pairs)
            write_part(out / table, name_of(source.cells[0][0], pairs), rows, run=run)


def _keep_study(runs: Sequence[Path], out: Path) -> None:
    """Keep what the runs of a study say of it, where they say the same."""
    said = {(run / STUDY).read_bytes() for run in runs if (run / STUDY).exists()}
    if len(said) == 1:
        write_whole(out / STUDY, lambda to: to.write_bytes(said.pop()))
