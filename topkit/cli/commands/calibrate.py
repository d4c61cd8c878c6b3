"""`topkit calibrate`: a file of calibration for loki or double_sparsity, from a capture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.values import parse_name


def _method(name: str) -> str:
    return parse_name(name, ["loki", "double_sparsity"], "method")


def calibrate(
    method: Annotated[
        str, typer.Argument(metavar="loki|double_sparsity", callback=_method, is_eager=True)
    ],
    capture: Annotated[Path, typer.Argument(help="A capture's folder, or a safetensors file.")],
    out: o.Out,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The model that was captured; the file then serves it in every dtype."
        ),
    ] = None,
    config: o.Config = None,
) -> None:
    """Choose channels of the keys of a capture, for a method's parameter calibration=FILE."""
    from topkit.experiments.train.calibrate import calibrate as write

    path = write(capture, method, out, model=model)
    typer.echo(f"{path}\nuse it as --indexer {method}:calibration={path}")
