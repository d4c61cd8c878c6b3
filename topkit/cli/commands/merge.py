"""`topkit merge`: runs of one identity, as shards leave them, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o


def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of one evaluation, measurement or study."),
    ],
    out: o.Out,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Join runs of the same settings, such as the shards of one run, in a new folder."""
    from topkit.experiments.evaluate.merge import merge as merging

    path = merging(runs, out)
    typer.echo(json.dumps({"run": str(path)}) if as_json else path)
