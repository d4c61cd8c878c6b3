"""One line that says where a figure or a table comes from: version, run, commit, folder."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.study.reading import CAPTURED, RUNS, STUDY, study_of

_DIGITS = 12  # of an id and a commit, as git shortens its own


def cite(run: str | Path | Sequence[str | Path]) -> str:
    """The line to put below a figure of a run: "topkit 0.2.0, run 9be00d89a9b7, commit dc0e11ed5192, results/mine".

    run: a folder of `study`, `evaluate` or `measure`, or several.
    Raises: InputError for a folder that holds no run.
    """
    several = list(run) if isinstance(run, list | tuple) else [run]
    places = [path_of(one, "the folder of a run") for one in several]
    described = [one for place in places for one in _described(place)]
    if not described:
        raise InputError(f"{', '.join(map(str, places)) or 'no folder'} holds no run to cite")
    return citation(described, places)


def of_study(folder: Path, study: Mapping[str, Any]) -> str:
    """The line of the page of a study of its own kind; where an earlier topkit wrote no run.json, its version and folder."""
    return citation(_described(folder) or [{"identity": study}], [folder])


def citation(described: Iterable[Mapping[str, Any]], places: Sequence[Path]) -> str:
    """The line, of what run.json says of some runs and of their folders; what nobody wrote down is left out."""
    runs = list(described)
    sessions = [session for run in runs for session in (run, *run.get("later", ()))]
    parts = {
        "topkit": [str(run["identity"].get("topkit", "")) for run in runs],
        "run": [str(run.get("id", ""))[:_DIGITS] for run in runs],
        "commit": [_short(str(session.get("commit", ""))) for session in sessions],
    }
    named = {name: list(dict.fromkeys(filter(None, texts))) for name, texts in parts.items()}
    words = [f"{name} {' and '.join(texts)}" for name, texts in named.items() if texts]
    return " ".join(", ".join([*words, *map(str, places)]).split())


def _short(commit: str) -> str:
    """A commit's first digits, and whether its tree was changed."""
    digits, dash, changed = commit.partition("-")
    return digits[:_DIGITS] + dash + changed


def _described(place: Path) -> list[Mapping[str, Any]]:
    if (place / run_file.NAME).exists():
        folders = [place]
    else:
        study = study_of(place / STUDY)
        folders = [place / one["folder"] for one in study.get(RUNS) or study.get(CAPTURED, ())]
    return [run for folder in folders if (run := run_file.read(folder)) is not None]
