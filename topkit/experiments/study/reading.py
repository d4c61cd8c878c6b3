"""What a report reads: the curves of runs, where their rows come from, and what is missing of them."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from topkit.documents import SHA256, Number, Text, Whole, read_json
from topkit.errors import NoRows
from topkit.experiments.evaluate.condensed import condensed, keep_condensed
from topkit.experiments.evaluate.missing import keyless, unfinished
from topkit.experiments.runs import run_file
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.curves import curves as curves_of
from topkit.experiments.study.equal_recipes import SCHEMA
from topkit.experiments.study.haystacks import joined
from topkit.experiments.study.provenance import sentences

STUDY = "study.json"
# Its keys: of a study of heads, and what is asked beside the curves.
HEADS, PREDICT, LAW = "heads", "predict", "law"
# Of a study of several models or seeds: its runs, each in a folder below the study's.
RUNS = "runs"
# Of a leaderboard of captures: the measurement of each, likewise.
CAPTURED = "captured"
# The run that reading heads are found on; its folder.
SPLIT = "heads"
# What a run's own study.json says of it.
OF_A_RUN = ("pilot", "left out")
_FOLDER = Text(
    r"[\w.-]*[\w-][\w.-]*(/from-[a-z]+)?(/seed-[0-9]+)?", "a folder below the study's own"
)
_SPLIT = Text(rf"([\w.-]*[\w-][\w.-]*/)?{SPLIT}", "a folder below the study's own")
ABOUT = {
    "model?": str,
    "runs?": [{"model": str, "seed": Whole(), "folder": _FOLDER, f"{SPLIT}?": _SPLIT}],
    "law?": {"name": str, "sha256": SHA256},
    "aims?": {
        "reach?": Number(0, 1),
        "margin?": Number(0, 1),
        "exact_between?": (Number(0, 1), Number(0, 1)),
    },
    **SCHEMA,
    str: object,
}


@dataclass(frozen=True)
class Reading:
    """The curves of one or several runs; origin: sentences; absent: what was to be run, a line each.

    described: what run.json says of each run, where it has one.
    """

    curves: list[Curve]
    origin: list[str]
    absent: list[str]
    described: tuple[Mapping[str, Any], ...] = ()


def load_study(*places: Path) -> list[Curve]:
    """The curves of the runs in some folders, as a report of them shows. Raises: as `reading`."""
    return reading(places, study_of(places[0] / STUDY)).curves


def reading(places: Sequence[Path], study: Mapping[str, Any]) -> Reading:
    """What folders of one identity hold together: each of a run, or each of a study of several.

    Raises: NoRows when they hold none; InputError naming a part that is not as its run wrote it, and for
    runs that cannot be joined.
    """
    if RUNS not in study or (places[0] / run_file.NAME).exists():
        return _of_run(places, keeps=True)
    curves, origin, absent = list[Curve](), list[str](), list[str]()
    described: list[Mapping[str, Any]] = []
    models = list(dict.fromkeys(one["model"] for one in study[RUNS]))
    for model in models:
        folders = [one["folder"] for one in study[RUNS] if one["model"] == model]
        name, own = Path(folders[0]).parts[0], list[Reading]()
        for folder in folders:
            # Of several shards some may not have come to it yet.
            there = [p / folder for p in places if (p / folder / run_file.NAME).exists()]
            of = name if len(models) > 1 else folder
            if there:
                try:
                    own.append(_of_run(there, keeps=False))
                except NoRows as none:
                    absent.append(f"{of}: {none}")
                    continue
                origin += [f"{of}: {line}" for line in (*own[-1].origin, *_said(there[0]))]
                absent += [f"{of}: {line}" for line in own[-1].absent]
                described += own[-1].described
            else:
                absent.append(f"{places[0] / folder} was not run yet.")
        for curve in joined([read.curves for read in own]):
            curves.append(replace(curve, model=name if len(models) > 1 else ""))
    if not curves:
        raise NoRows(f"{places[0]} holds a study none of whose runs has rows yet; run it first")
    # Beside one another what differs in the model alone.
    curves.sort(key=lambda curve: (curve.task, curve.length, curve.sparse_from))
    return Reading(curves, origin, absent, tuple(described))


def _said(run: Path) -> list[str]:
    """What a run's own study.json says of it."""
    said = study_of(run / STUDY)
    return [f"{of}: {said[of]}." for of in OF_A_RUN if of in said]


def _of_run(places: Sequence[Path], keeps: bool) -> Reading:
    """keeps: the condensed tables of a single folder are written there."""
    alone = keeps and len(places) == 1
    tables = keep_condensed(places[0]) if alone else condensed(*places)
    described = [run for place in places if (run := run_file.read(place)) is not None]
    origin = list(dict.fromkeys(line for one in described for line in sentences(one)))
    origin += keyless(tables[0])
    curves = curves_of(*tables)
    if not curves:
        raise NoRows(f"{places[0]} holds no rows yet; run the same command to its end")
    return Reading(curves, origin, unfinished(described, tables[0]), tuple(described))


def study_of(path: Path) -> dict[str, Any]:
    """The content of study.json; nothing where `evaluate` wrote the run."""
    if not path.exists():
        return {}
    return read_json(path, ABOUT, "run the study again, or delete the file")
