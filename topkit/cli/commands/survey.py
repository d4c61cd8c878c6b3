"""`topkit survey`: what the keys and attention weights of a capture are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.screen import show
from topkit.cli.values import parse_numbers
from topkit.errors import InputError


def survey(
    captures: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAPTURE...",
            help="A capture's folder, or a file: .safetensors, .npz, .pt; several, to be compared.",
        ),
    ],
    sink: Annotated[
        int, typer.Option("--sink", min=1, help="How many slots at the start count as the sink.")
    ] = 4,
    layers: Annotated[str, typer.Option("--layers", help="all, or numbers: 0,3,5.")] = "all",
    layout: o.Layout = None,
    scaling: o.Scaling = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            parser=o.file,
            metavar="FILE",
            help="Write a CSV with a row for each layer and group.",
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", parser=o.file, metavar="FILE", help="Draw a figure: FILE.png, .svg or .pdf."
        ),
    ] = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Show a capture's sinks, offsets, channel outliers and entropy, by layer."""
    from topkit.experiments.measure.survey import TRAITS, several, write_csv
    from topkit.experiments.measure.survey import survey as surveying

    wanted = None if layers == "all" else parse_numbers(layers)
    made = {
        name: surveying(capture, sink=sink, layers=wanted, layout=layout, scaling=scaling)
        for name, capture in _named(captures).items()
    }
    one = next(iter(made.values())) if len(made) == 1 else None
    rows = several(made) if one is None else list(one.rows)
    if csv is not None:
        write_csv(rows, csv)
    if figure is not None:
        from topkit.experiments.measure.survey_figure import save_survey_figure

        save_survey_figure(one or made, figure)
    if as_json:
        show(rows, as_json)
        return
    layered = several(made, by_layer=True) if one is None else one.by_layer()
    show(
        [
            {
                name.replace("_", " "): _short(value) if name in TRAITS else value
                for name, value in row.items()
            }
            for row in layered
        ],
        as_json,
    )


def _named(captures: list[Path]) -> dict[str, Path]:
    """Captures by the ends of their paths, or where these are alike by the whole."""
    ends = [capture.resolve().name for capture in captures]
    names = ends if len(set(ends)) == len(ends) else [str(capture) for capture in captures]
    if len(set(names)) < len(names):
        raise InputError("a capture is named twice; name each once")
    return dict(zip(names, captures, strict=True))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
