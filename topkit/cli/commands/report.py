"""`topkit report`: the report of a run, and a gate on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.exports import Exports
from topkit.errors import InputError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that study, evaluate or measure wrote; those of several shards are joined.",
        ),
    ],
    require: Annotated[
        str | None,
        typer.Option(
            "--require",
            metavar="SPEC",
            help="Exit 1 if this indexer is worse by more than the margin than what --against "
            "names, 3 if the rows do not decide it.",
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "-k",
            help="The budgets shown, and required with --require: 16,1%; repeatable. All by default.",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="With --require: dense, which is full attention, or exact Top-k at the same budget.",
        ),
    ] = "dense",
    margin: o.Margin = 0.05,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=o.folder,
            metavar="FOLDER",
            help="Where the report goes; the first RUN by default.",
        ),
    ] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Write the figures of each setting as PNG and SVG, too; by default of at most four settings.",
        ),
    ] = None,
    csv: o.Csv = None,
    latex: o.Latex = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Write RUN/report.html and its figures, of one run or of several that are joined.

    Of a folder of `measure`: a page of its indexers' fidelity. With --csv, --latex or --json: the numbers of every cell instead of the page (docs/exports.md).
    """
    from topkit.experiments.study.equivalence import AGAINST, require_equivalent
    from topkit.experiments.study.reading import load_study

    if against not in AGAINST:
        raise InputError(f"--against must be dense or exact; got {against!r}")
    exports = Exports(csv, latex, as_json)
    if exports.wanted and out is not None:
        raise InputError("--out is where the page goes, which --csv, --latex and --json do without")
    k = None if budgets is None else ",".join(budgets)
    if exports.wanted:
        _export(exports, runs, margin, k)
    else:
        from topkit.experiments.study.any_report import any_reported

        path, absent = any_reported(runs, margin, k, out, pictures)
        for line in absent:
            typer.echo(line, err=True)
        typer.echo(path)
    if require is not None:
        typer.echo(require_equivalent(load_study(*runs), require, margin, k, against), err=True)


def _export(exports: Exports, runs: list[Path], margin: float, k: str | None) -> None:
    from topkit.experiments.study.citation import citation
    from topkit.experiments.study.measured_run import is_measurement, measured_of

    if is_measurement(runs[0]):
        from topkit.cli.summary import export_measured

        measured, described = measured_of(runs[0])
        export_measured(exports, measured, (), citation([described], runs[:1]))
        return
    from topkit.cli.summary import printable
    from topkit.experiments.study.tidy import rows_of_run

    rows, read = rows_of_run(runs, margin, k)
    cited = citation(read.described, runs)
    for line in read.absent:
        typer.echo(line, err=True)
    whole = {"citation": cited, "margin": margin, "missing": read.absent, "cells": rows}
    exports.write(whole, rows, printable(rows), cited)
