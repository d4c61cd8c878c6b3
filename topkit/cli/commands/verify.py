"""`topkit verify`: whether a folder is still what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|CAPTURE", help="The folder of a run or a capture.")
    ],
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Check that the files of a run or a capture are as they were written; exit 2 if not."""
    from topkit.experiments.runs.folder import raise_first
    from topkit.experiments.study.verify import inspect

    verified = inspect(path)
    numbers = {"kind": verified.kind, "files": verified.files, "faults": verified.faults}
    if as_json:
        typer.echo(json.dumps({"path": str(path), **numbers}, indent=1))
    else:
        for fault in verified.faults[1:]:
            typer.echo(fault, err=True)
    raise_first(verified.faults)
    if not as_json:
        typer.echo(f"{path}: a {verified.kind} of {verified.files} files, each as it was written")
