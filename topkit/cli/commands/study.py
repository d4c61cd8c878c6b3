"""`topkit study`: a study, from the first prompt to the report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from topkit.cli import options as o
from topkit.cli.progress import carry_out
from topkit.cli.screen import say_unfinished
from topkit.cli.values import parse_name


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="A YAML file, or a name: quick, full, tasks, ... (topkit list studies).",
        ),
    ],
    out: o.Out,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="quick|full|tasks",
            help="The size of the study fidelity-vs-accuracy: minutes, an hour, or hours.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model; repeatable: each has its own folder."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help=o.TASK_HELP + " Repeatable.")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option("--length", help="Length of a prompt in tokens: 4k, or several, 4k,8k."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", "--haystacks", min=1, help="Haystacks of each task and length."),
    ] = None,
    budgets: o.MaybeBudgets = None,
    budget: o.ByteBudget = None,
    indexer: o.MaybeIndexers = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", help="Seed of the prompts, and of indexers that draw at random; repeatable."
        ),
    ] = None,
    pilot: Annotated[
        bool | None,
        typer.Option(
            "--pilot/--no-pilot",
            help="Run a few haystacks first, to find tasks on which indexers can be told apart.",
        ),
    ] = None,
    pilot_haystacks: Annotated[
        int | None, typer.Option("--pilot-haystacks", min=1, help="Haystacks of the pilot.")
    ] = None,
    distractors: Annotated[
        str | None,
        typer.Option(
            "--distractors",
            help="Numbers of distractors that the pilot tries, 60,16,4; the first that suits is used.",
        ),
    ] = None,
    sparse_from: Annotated[
        list[str] | None,
        typer.Option(
            "--sparse-from",
            metavar="question|answer",
            help="From where on indexers choose: the question, or the answer alone; repeatable: a folder each.",
        ),
    ] = None,
    observe: Annotated[
        str | None,
        typer.Option(
            "--observe", metavar="mean|answer|answer-rows|rows|no", help="Fidelity, as in evaluate."
        ),
    ] = None,
    shadow: Annotated[
        bool | None,
        typer.Option("--shadow/--no-shadow", help="Shadow selections, as in evaluate."),
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="A text to hide needles in.")] = None,
    capture: Annotated[
        list[Path] | None,
        typer.Option(
            "--capture",
            help="lightning-precision, leaderboard: a capture, or a file of tensors, in place of models and tasks; repeatable.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="topk-sft, entropy: the folder of books-train.jsonl.xz."),
    ] = None,
    reach: Annotated[
        float | None,
        typer.Option("--reach", min=0, max=1, help="Half the width of the intervals to aim at."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", help="Whether exact Top-k equals full attention within so much: 0.01."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups", metavar="all|LAYER/GROUP,...", help="KV groups to be exact one at a time."
        ),
    ] = None,
    device: o.Device = None,
    dtype: o.DType = None,
    batch_size: o.BatchSize = None,
    memory: o.Memory = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Worker processes; by default one a core, at most 4."),
    ] = None,
    runner: o.Runner = None,
    shard: o.Shard = None,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Run a study to its report: which indexers, at which budgets, on which tasks and models.

    Options replace what the study's file says.
    """
    from topkit.experiments.evaluate.setting import OBSERVED
    from topkit.experiments.study.study import run_study

    plan = run_study.plan(
        name,
        preset,
        out,
        model or None,
        tasks=task or None,
        lengths=length,
        haystacks=samples,
        budgets=budgets,
        budget=budget,
        indexers=indexer or None,
        seed=seed or None,
        pilot=_pilot(pilot, pilot_haystacks, distractors),
        sparse_from=sparse_from or None,
        observe=observe and OBSERVED[parse_name(observe, list(OBSERVED), "way to observe")],
        shadow=shadow,
        text=text,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        memory=memory,
        reach=reach,
        margin=margin,
        groups=groups,
        # A worker may take 3 GB; the cores that are left serve the workers' threads.
        jobs=jobs if jobs or runner else min(os.cpu_count() or 1, 4),
        runner=runner,
        shard=shard,
        force=force,
        captures=capture or None,
        corpus=corpus,
    )
    path = carry_out(plan, dry_run, as_json)
    if path is not None and path.suffix != ".html":
        from topkit.experiments.study.ending import not_drawn

        say_unfinished(path, as_json, not_drawn())
    elif path is not None:
        typer.echo(json.dumps({"report": str(path)}) if as_json else path)


def _pilot(wanted: bool | None, haystacks: int | None, distractors: str | None) -> Any:
    """The pilot's keys that flags say; None for none."""
    from topkit.cli.values import parse_numbers

    if wanted is False:
        return False
    keys = {
        "haystacks": haystacks,
        "distractors": None if distractors is None else parse_numbers(distractors),
    }
    said = {key: value for key, value in keys.items() if value is not None}
    return said or wanted
