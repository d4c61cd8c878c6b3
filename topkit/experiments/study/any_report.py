"""The page of a run, whatever its rows: of answers, or of a measurement."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.intervals import MARGIN
from topkit.experiments.study.measure_page import measure_page
from topkit.experiments.study.measured_run import is_measurement
from topkit.experiments.study.report import reported
from topkit.indexers.budget import Budgets


def report(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    k: Budgets | None = None,
    out: str | Path | None = None,
    pictures: bool | None = None,
) -> Path:
    """Write RUN/report.html; of a run with answers its figures as well, as RUN/figures/*.png and *.svg.

    run: the folder of a run, or of several of one identity, as shards leave them, whose rows are joined; or
    one of `measure`. out: the folder to write to; by default the first run's. k: the budgets that are shown, of a run
    with answers. pictures: whether its figures are written as PNG and SVG, too; without it where it has at most four
    settings. The condensed tables of one run's answers are written as well, under RUN/curve.
    Returns: the page's path; of a run without rows yet, of a page that says so. Raises: InputError for a folder without
    a run, when nothing was run at a budget, naming a part that
    is not as the run wrote it, and for runs that cannot be joined.
    """
    return any_reported(run, margin, k, out, pictures)[0]


def any_reported(
    run: str | Path | Sequence[str | Path],
    margin: float = MARGIN,
    k: Budgets | None = None,
    out: str | Path | None = None,
    pictures: bool | None = None,
) -> tuple[Path, list[str]]:
    """As `report`; beside the path what is not there, a line each: rows that were to be run, and pictures."""
    several = list(run) if isinstance(run, list | tuple) else [run]
    runs = [path_of(one, "the folder of a run") for one in several]
    if not any(is_measurement(one) for one in runs):
        return reported(run, margin, k, out, pictures)
    if len(runs) > 1:
        raise InputError(
            "a page of a measurement is of one folder; join its shards by `topkit merge`"
        )
    if k is not None:
        raise InputError("a page of a measurement shows every k; leave -k out")
    folder = runs[0] if out is None else path_of(out, "a folder for the report")
    folder.mkdir(parents=True, exist_ok=True)
    return write_page(measure_page(runs[0]), folder / "report.html"), []


def write_page(page: str, file: Path) -> Path:
    """Write a page whole, or not at all."""
    write_whole(file, lambda path: path.write_text(page, encoding="utf-8"), parents=False)
    return file
