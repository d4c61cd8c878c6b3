"""`topkit report`: the report of a run, and a gate on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A folder that study or evaluate wrote.")
    ],
    require: Annotated[
        str | None,
        typer.Option(
            "--require",
            metavar="SPEC",
            help="Exit 1 if this indexer is worse than full attention by more than the margin, "
            "3 if the rows do not decide it.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("-k", help="With --require: at this budget.")
    ] = None,
    margin: o.Margin = 0.05,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Write RUN/report.html and its figures."""
    from topkit.experiments.study.curves import load
    from topkit.experiments.study.equivalence import require_equivalent
    from topkit.experiments.study.report import write_report

    path = write_report(run, margin)
    typer.echo(json.dumps({"report": str(path)}) if as_json else path)
    if require is not None:
        typer.echo(require_equivalent(load(run), require, margin, budget), err=True)
