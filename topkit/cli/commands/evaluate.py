"""`topkit evaluate`: accuracy rows of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.progress import carry_out
from topkit.cli.screen import say_unfinished, show
from topkit.cli.values import parse_lengths, parse_name, parse_task


def evaluate(
    model: o.Model,
    task: Annotated[list[str], typer.Option("--task", help=o.TASK_HELP + " May be repeated.")],
    length: Annotated[
        str, typer.Option("--length", help="Length of a prompt in tokens: 4k, or several, 4k,8k.")
    ],
    samples: o.Samples,
    out: o.Out,
    indexer: o.MaybeIndexers = None,
    budgets: o.MaybeBudgets = None,
    budget: o.ByteBudget = None,
    sparse_from: Annotated[
        str,
        typer.Option(
            "--sparse-from",
            metavar="question|answer",
            help="From where on indexers choose: the question, or the answer alone.",
        ),
    ] = "question",
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Full attention as well, to compare with.")
    ] = True,
    observe: Annotated[
        str,
        typer.Option(
            "--observe",
            metavar="mean|answer|answer-rows|rows|no",
            help="Fidelity to record: means over the question and over the answer, over the answer alone, a row for "
            "each position of the answer or of both, or none.",
        ),
    ] = "mean",
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow", help="Selections for the queries of the unchanged model are judged too."
        ),
    ] = False,
    text: Annotated[Path | None, typer.Option("--text", help="A text to hide needles in.")] = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.DType = None,
    batch_size: o.BatchSize = None,
    memory: o.Memory = None,
    jobs: o.MaybeJobs = None,
    runner: o.Runner = None,
    shard: o.Shard = None,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Ask a model the questions of a task, with and without indexers in its attention."""
    from topkit.experiments.evaluate.evaluate import evaluate as evaluation
    from topkit.experiments.evaluate.setting import OBSERVED

    parse_name(observe, list(OBSERVED), "way to observe")
    plan = evaluation.plan(
        model,
        [parse_task(name) for name in task],
        parse_lengths(length),
        samples,
        indexer or (),
        budgets or "",
        out=out,
        sparse_from=sparse_from,
        dense=dense,
        observe=OBSERVED[observe],
        shadow=shadow,
        text=text,
        seed=seed,
        device=device,
        dtype=dtype,
        jobs=jobs,
        runner=runner,
        shard=shard,
        batch_size=batch_size,
        memory=memory,
        force=force,
        budget=budget,
    )
    if carry_out(plan, dry_run, as_json) is None:
        return
    if plan.left_over:
        say_unfinished(out, as_json)
        return
    from topkit.cli.summary import accuracy, left_out
    from topkit.experiments.study.curves import load

    curves = load(out)
    for line in left_out(curves):
        typer.echo(line, err=True)
    show(accuracy(curves, as_json), as_json)
