"""`topkit study`: a preset, from the first prompt to the report."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.progress import carry_out


def study(
    name: Annotated[str, typer.Argument(metavar="fidelity-vs-accuracy")],
    out: o.Out,
    preset: Annotated[
        str, typer.Option("--preset", metavar="quick|full|tasks", help="Minutes, an hour, hours.")
    ] = "quick",
    model: Annotated[
        str, typer.Option("--model", help="A model's folder, or `reference`, the bundled one.")
    ] = "reference",
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.DType = None,
    batch_size: o.BatchSize = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Worker processes; by default one a core, at most 4."),
    ] = None,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Run a study to its report: which indexers, at which budgets, on which tasks."""
    from topkit.experiments.study.study import run_study

    plan = run_study.plan(
        name,
        preset,
        out,
        model,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        # A worker may take 3 GB; the cores that are left serve the workers' threads.
        jobs=jobs or min(os.cpu_count() or 1, 4),
        force=force,
    )
    path = carry_out(plan, dry_run, as_json)
    if path is not None:
        typer.echo(json.dumps({"report": str(path)}) if as_json else path)
