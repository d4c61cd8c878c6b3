"""The committed results: which there are, their curves, and the commands that repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from topkit.experiments.runs import run_file
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.reading import RUNS, STUDY, load_study, study_of
from topkit.experiments.study.study_file import read_study

RESULTS = Path(__file__).parents[1] / "results"


def there(*names: str) -> list[str]:
    """Those of some results that are committed."""
    return [name for name in names if (RESULTS / name / STUDY).exists()]


def curves(*names: str) -> Iterator[Curve]:
    for name in there(*names):
        yield from load_study(RESULTS / name)


def folders(names: list[str]) -> str:
    """The results that numbers are of, each with the command that repeats it."""
    return (
        ", ".join(f"`results/{name}` (`{_command(name)}`)" for name in names)
        if names
        else "nothing yet"
    )


def _command(name: str) -> str:
    """What made results, by study.json and run.json: a study's name, its model, and a number of haystacks of its own."""
    folder = RESULTS / name
    about = study_of(folder / STUDY)
    study, said = read_study(about.get("preset", about["study"])), about.get("model", "")
    words = ["topkit", "study", about.get("preset", about["study"])]
    if said != ", ".join(study.model):
        words += [word for model in said.split(", ") for word in ("--model", model)]
    places = [folder / run["folder"] for run in about.get(RUNS, [{"folder": "."}])]
    runs = [run for place in places if (run := run_file.read(place)) is not None]
    asked = {one["samples"] for run in runs for one in run["asked"] if "samples" in one}
    own = {study.of(model).at(n) for model in study.model for _, n in study.of(model).settings}
    if len(asked) == 1 and not asked <= own:
        words += ["--samples", str(*asked)]
    return shlex.join(words)
