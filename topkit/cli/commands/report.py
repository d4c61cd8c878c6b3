"""`topkit report`: the report of a run, and a gate on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.errors import InputError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that study or evaluate wrote; those of several shards are joined.",
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
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Write RUN/report.html and its figures, of one run or of several that are joined."""
    from topkit.experiments.study.equivalence import AGAINST, require_equivalent
    from topkit.experiments.study.reading import load_study
    from topkit.experiments.study.report import reported

    if against not in AGAINST:
        raise InputError(f"--against must be dense or exact; got {against!r}")
    k = None if budgets is None else ",".join(budgets)
    path, absent = reported(runs, margin, k, out)
    for line in absent:
        typer.echo(line, err=True)
    typer.echo(json.dumps({"report": str(path)}) if as_json else path)
    if require is not None:
        typer.echo(require_equivalent(load_study(*runs), require, margin, k, against), err=True)
