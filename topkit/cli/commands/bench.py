"""`topkit bench`: speeds of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[truth|measure|attach|capture|decode|encode|noise|build|recipes|appends|summary|report|kept]...",
            help="All by default. With --device cuda: truth, score, select, score-select, gather, append, dense, "
            "decode, ann, topk-attention, kept, step, generate; these run on a CPU, too, with --tiny.",
        ),
    ] = None,
    device: o.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=o.file,
            metavar="FILE",
            help="The CSV to write, by default benchmarks/results/cpu.csv or .../GPU-NAME.csv; rows of benches that do not run stay.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="An older CSV; exit 1 if something became slower."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Run for seconds, to show that it works; writes nothing.")
    ] = False,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="How many times everything is timed, on a CPU."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers",
            min=1,
            help="generate, on a GPU: layers beyond the first, for a layer's time (2).",
        ),
    ] = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Time topkit on this machine, beside plain torch or, on a GPU, the fastest that is there."""
    from topkit.cli import speed

    speed.bench(names or (), device, out, compare, tiny, repeats, layers, as_json)
