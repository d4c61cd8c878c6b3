"""`topkit capture`: a capture of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.progress import carry_out
from topkit.cli.values import parse_length, parse_task


def capture(
    model: o.Model,
    length: o.Length,
    samples: o.Samples,
    out: o.Out,
    task: o.MaybeTask = None,
    text: Annotated[Path | None, typer.Option("--text", help="A text file.")] = None,
    layers: Annotated[str, typer.Option("--layers", help="all, or numbers: 0,3,5.")] = "all",
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            help="Query positions: last:32, every:64, or numbers; by default a task's question "
            "and answer, a text's last 32.",
        ),
    ] = None,
    hidden: Annotated[
        bool,
        typer.Option("--hidden", help="Save hidden states, MLA's query latent and RoPE as well."),
    ] = False,
    prefill_queries: Annotated[
        str,
        typer.Option(
            "--prefill-queries",
            help="Save the queries of this many tokens before the first position as well, or `all`.",
        ),
    ] = "0",
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.DType = None,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Save the queries, keys and values of a model's attention, over a task or a text."""
    from topkit.experiments.capture.from_model import capture_model

    plan = capture_model.plan(
        model,
        task=parse_task(task) if task else None,
        text=text,
        length=parse_length(length),
        samples=samples,
        out=out,
        layers=layers,
        positions=positions,
        hidden=hidden,
        prefill_queries=prefill_queries,
        seed=seed,
        device=device,
        dtype=dtype,
        force=force,
    )
    captured = carry_out(plan, dry_run, as_json)
    if captured is not None and as_json:
        typer.echo(json.dumps({"out": str(out), "fingerprint": captured.fingerprint}))
