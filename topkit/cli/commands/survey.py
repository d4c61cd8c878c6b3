"""`topkit survey`: what the keys and attention weights of a capture are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.screen import show
from topkit.cli.values import parse_numbers


def survey(
    capture: Annotated[
        Path, typer.Argument(metavar="CAPTURE", help="A capture's folder, or a safetensors file.")
    ],
    sink: Annotated[
        int, typer.Option("--sink", min=1, help="The first slots whose weight is a sink's.")
    ] = 4,
    layers: Annotated[str, typer.Option("--layers", help="all, or numbers: 0,3,5.")] = "all",
    csv: Annotated[
        Path | None,
        typer.Option("--csv", parser=o.file, metavar="FILE", help="Write a row a layer and group."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", parser=o.file, metavar="FILE", help="Draw them: FILE.png, .svg or .pdf."
        ),
    ] = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Show a capture's sinks, offsets, channel outliers and entropy, by layer."""
    from topkit.experiments.measure.survey import TRAITS
    from topkit.experiments.measure.survey import survey as surveying

    made = surveying(capture, sink=sink, layers=None if layers == "all" else parse_numbers(layers))
    if csv is not None:
        made.to_csv(csv)
    if figure is not None:
        from topkit.experiments.measure.survey_figure import save_survey_figure

        save_survey_figure(made, figure)
    if as_json:
        show(made.rows, as_json)
        return
    show(
        [
            {
                "layer": row["layer"],
                **{name.replace("_", " "): _short(row[name]) for name in TRAITS},
            }
            for row in made.by_layer()
        ],
        as_json,
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
