"""`topkit advise`: the cheapest recipe of a run that is shown to hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o


def advise(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that study or evaluate wrote; those of several shards are joined.",
        ),
    ],
    margin: o.Margin = 0.02,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="exact|dense",
            help="Exact Top-k at each recipe's budget, or dense, which is full attention.",
        ),
    ] = "exact",
    budgets: Annotated[
        list[str] | None,
        typer.Option("-k", help="The budgets looked at: 16,1%; repeatable. All by default."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Of a study of several models, one.")
    ] = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Say which recipes hold within a margin on all tasks of a run, and which is cheapest.

    Exit 0: one is shown to hold; 3: none is, but one may; 1: all are shown to lose more.
    """
    from topkit.cli.advice import show_advice
    from topkit.experiments.study.advice import advise as advising

    k = None if budgets is None else ",".join(budgets)
    advice = advising(runs, margin, against, k, model)
    for line in (*advice.absent, *advice.left_out):
        typer.echo(line, err=True)
    if as_json:
        typer.echo(json.dumps(advice.summary(), indent=1))
    else:
        show_advice(advice)
    advice.require()
