"""`topkit measure`: fidelity rows of a capture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.exports import Exports
from topkit.cli.progress import carry_out
from topkit.cli.screen import show
from topkit.cli.values import parse_name, parse_numbers


def measure(
    capture: Annotated[
        Path,
        typer.Argument(
            metavar="CAPTURE", help="A capture's folder, or a file: .safetensors, .npz, .pt."
        ),
    ],
    indexer: o.Indexers,
    budgets: o.Budgets,
    out: o.Out,
    layers: Annotated[str, typer.Option("--layers", help="all, or numbers: 0,3,5.")] = "all",
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="SPEC",
            help="Measure recall against what this indexer chooses, not against exact Top-k.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Show the mean of this metric too (topkit list metrics)."),
    ] = None,
    reduce: Annotated[
        bool,
        typer.Option("--reduce", help="Write one row for each head: the mean over its positions."),
    ] = False,
    budget: o.ByteBudget = None,
    layout: o.Layout = None,
    scaling: o.Scaling = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    jobs: o.MaybeJobs = None,
    runner: o.Runner = None,
    shard: o.Shard = None,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    csv: o.Csv = None,
    latex: o.Latex = None,
    html: o.Html = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Judge indexers on captured tensors, against exact Top-k."""
    from topkit.experiments.measure.measure import measure as measuring
    from topkit.fidelity import METRICS

    exports = Exports(csv, latex, as_json)
    metrics = [parse_name(name, list(METRICS), "metric") for name in metric or ()]
    plan = measuring.plan(
        capture,
        indexer,
        budgets,
        out=out,
        layers=None if layers == "all" else parse_numbers(layers),
        reference=reference,
        reduce=reduce,
        seed=seed,
        device=device,
        jobs=jobs,
        runner=runner,
        shard=shard,
        force=force,
        budget=budget,
        layout=layout,
        scaling=scaling,
    )
    measured = carry_out(plan, dry_run, as_json)
    if measured is not None and not measured.rows:
        typer.echo("[]" if as_json else f"shard {shard} has no layer of a sample")
    elif measured is not None:
        from topkit.cli.summary import export_measured, fidelity

        if exports.wanted:
            from topkit.experiments.study.citation import cite

            export_measured(exports, measured, metrics, cite(out))
        if not exports.printed:
            show(fidelity(measured.summary(metrics), metrics), as_json)
        if html is not None:
            from topkit.experiments.study.any_report import write_page
            from topkit.experiments.study.measure_page import measure_page

            write_page(measure_page(out), html)
