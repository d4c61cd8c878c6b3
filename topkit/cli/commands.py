"""The commands: each reads its words and calls one function of the package."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from topkit.cli import options as o
from topkit.cli.screen import show
from topkit.cli.values import parse_length, parse_lengths, parse_name, parse_numbers, parse_task
from topkit.errors import GateFailed

app = typer.Typer(
    name="topkit",
    help="How good must an approximate Top-k indexer be before a language model notices?",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        from topkit import __version__

        typer.echo(f"topkit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def topkit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """How good must an approximate Top-k indexer be before a language model notices?"""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _show_plans(plans: list[dict[str, Any]], asked: bool) -> None:
    if asked:
        show(plans, as_json=True)


@app.command()
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
        bool, typer.Option("--hidden", help="Hidden states, MLA's query latent and RoPE as well.")
    ] = False,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.DType = None,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Write down what a model's attention sees, over a task or a text."""
    from topkit.experiments.capture.from_model import capture_model

    plans: list[dict[str, Any]] = []
    captured = capture_model(
        model,
        task=parse_task(task) if task else None,
        text=text,
        length=parse_length(length),
        samples=samples,
        out=out,
        layers=layers,
        positions=positions,
        hidden=hidden,
        seed=seed,
        device=device,
        dtype=dtype,
        force=force,
        dry_run=dry_run,
        on_plan=plans.append,
    )
    _show_plans(plans, dry_run and as_json)
    if captured is not None and as_json:
        typer.echo(json.dumps({"out": str(out), "fingerprint": captured.fingerprint}))


@app.command()
def measure(
    capture: Annotated[
        Path, typer.Argument(metavar="CAPTURE", help="A capture's folder, or a safetensors file.")
    ],
    indexer: o.Indexers,
    budgets: o.Budgets,
    out: o.Out,
    layers: Annotated[str, typer.Option("--layers", help="all, or numbers: 0,3,5.")] = "all",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="SPEC", help="Overlap with this indexer's as well."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Show the mean of this one too; see `topkit list metrics`."),
    ] = None,
    reduce: Annotated[
        bool, typer.Option("--reduce", help="One row a head, not one a head and position.")
    ] = False,
    seed: o.Seed = 0,
    device: o.Device = None,
    jobs: o.Jobs = 1,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Judge indexers on captured tensors, against exact Top-k."""
    from topkit.experiments.measure.measure import measure as run
    from topkit.fidelity import METRICS

    metrics = [parse_name(name, list(METRICS), "metric") for name in metric or ()]
    plans: list[dict[str, Any]] = []
    measured = run(
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
        force=force,
        dry_run=dry_run,
        on_plan=plans.append,
    )
    _show_plans(plans, dry_run and as_json)
    if measured is not None:
        from topkit.cli.summary import fidelity

        rows = measured.summary(metrics)
        show(rows if as_json else fidelity(rows, metrics), as_json)


_OBSERVED: dict[str, bool | str] = {"mean": True, "rows": "rows", "no": False}


@app.command()
def evaluate(
    model: o.Model,
    task: Annotated[list[str], typer.Option("--task", help=o.TASK_HELP + " May be repeated.")],
    length: Annotated[str, typer.Option("--length", help="Tokens of a prompt: 4k or 4k,8k.")],
    samples: o.Samples,
    out: o.Out,
    indexer: o.MaybeIndexers = None,
    budgets: o.MaybeBudgets = None,
    sparse_from: Annotated[
        str,
        typer.Option("--sparse-from", metavar="question|answer", help="Where selectors begin."),
    ] = "question",
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Full attention as well, to compare with.")
    ] = True,
    observe: Annotated[
        str,
        typer.Option(
            "--observe",
            metavar="mean|rows|no",
            help="Fidelity: its mean over an answer, a row a position, or none.",
        ),
    ] = "mean",
    text: Annotated[Path | None, typer.Option("--text", help="A text to hide needles in.")] = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.DType = None,
    batch_size: o.BatchSize = None,
    jobs: o.Jobs = 1,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Ask a model the questions of a task, with keys left out of its attention."""
    from topkit.experiments.evaluate.evaluate import evaluate as run

    parse_name(observe, list(_OBSERVED), "way to observe")
    plans: list[dict[str, Any]] = []
    rows = run(
        model,
        [parse_task(name) for name in task],
        parse_lengths(length),
        samples,
        indexer or (),
        budgets or "",
        out=out,
        sparse_from=sparse_from,
        dense=dense,
        observe=_OBSERVED[observe],
        text=text,
        seed=seed,
        device=device,
        dtype=dtype,
        jobs=jobs,
        batch_size=batch_size,
        force=force,
        dry_run=dry_run,
        on_plan=plans.append,
    )
    _show_plans(plans, dry_run and as_json)
    if rows is not None:
        from topkit.cli.summary import accuracy

        show(accuracy(out, as_json), as_json)


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A folder that study or evaluate wrote.")
    ],
    require: Annotated[
        str | None,
        typer.Option(
            "--require",
            metavar="SPEC",
            help="Exit 1 if this indexer is worse than full attention by more than the margin, "
            "3 if the rows do not decide it.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("-k", help="With --require: at this budget.")
    ] = None,
    margin: o.Margin = 0.05,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Write RUN/report.html and its figures."""
    from topkit.experiments.study.curves import load
    from topkit.experiments.study.findings import require_equivalent
    from topkit.experiments.study.report import write_report

    path = write_report(run, margin)
    typer.echo(json.dumps({"report": str(path)}) if as_json else path)
    if require is not None:
        typer.echo(require_equivalent(load(run), require, margin, budget), err=True)


@app.command()
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
    from topkit.experiments.study.presets import run_study

    plans: list[dict[str, Any]] = []
    path = run_study(
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
        dry_run=dry_run,
        on_plan=plans.append,
    )
    _show_plans(plans, dry_run and as_json)
    if path is not None:
        typer.echo(json.dumps({"report": str(path)}) if as_json else path)


def _recipe(name: str) -> str:
    # Eager: a misspelt name is said before what its options lack.
    return parse_name(name, ["reference", "lightning"], "recipe")


@app.command()
def train(
    name: Annotated[
        str, typer.Argument(metavar="reference|lightning", callback=_recipe, is_eager=True)
    ],
    corpus: Annotated[
        Path,
        typer.Option(
            "--corpus", help="Folder of books-train.jsonl.xz: title, author, text a line."
        ),
    ],
    out: o.Out,
    model: Annotated[
        str, typer.Option("--model", help="lightning: the model whose attention it learns.")
    ] = "reference",
    steps: Annotated[int, typer.Option("--steps", min=1, help="lightning: batches.")] = 1000,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="reference: the second run, from a first's.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Seconds, to show that the recipe runs.")
    ] = False,
    stop_after: Annotated[
        float, typer.Option("--stop-after", help="reference: seconds; a rerun goes on from there.")
    ] = math.inf,
    seed: o.Seed = 0,
    device: o.Device = "cuda",
    jobs: o.Jobs = 14,
    config: o.Config = None,
) -> None:
    """Train the bundled model, or a lightning indexer for one, anew."""
    if name == "lightning":
        from topkit.experiments.train.lightning import train_for

        small = {"steps": 2, "rows": 1, "length": 256, "workers": 1} if tiny else {"steps": steps}
        path = train_for(
            model,
            corpus,
            out,
            device=device or "cuda",
            seed=seed,
            report=typer.echo,
            **{"workers": jobs, **small},
        )
        typer.echo(path)
        return
    from topkit.experiments.train.train import Recipe, train_reference

    recipe = Recipe() if start_from is None else Recipe.second()
    done = train_reference(
        corpus,
        out,
        recipe=replace(Recipe.tiny() if tiny else recipe, seed=seed or recipe.seed),
        start_from=start_from,
        device=device or "cuda",
        workers=jobs,
        stop_after=stop_after,
        report=typer.echo,
    )
    typer.echo(
        f"{out / 'model'} holds the model" if done else f"stopped; {out} can be gone on with"
    )


@app.command()
def score(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option("--out", parser=o.file, metavar="FILE", help="The JSON file to write."),
    ],
    lengths: Annotated[str, typer.Option("--length", help="Tokens: 4k,8k.")] = "4k,8k",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Prompts a row.")] = 200,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Folder of books-valid.jsonl.xz: perplexity.")
    ] = None,
    seed: o.Seed = 1,
    device: o.Device = None,
    jobs: o.Jobs = 1,
    config: o.Config = None,
) -> None:
    """Score a model, dense, on every task: what it can do before any key is left out."""
    from topkit.experiments.train.scores import score_model, write_scores

    found = score_model(
        model,
        lengths=parse_lengths(lengths),
        prompts=samples,
        seed=seed,
        corpus=corpus,
        device=device,
        jobs=jobs,
        report=typer.echo,
    )
    write_scores(out, found)


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[truth|measure|attach|capture]...",
            help="All by default. With --device cuda: truth, score, select, score-select, gather, "
            "append, dense, step, generate; these run on a CPU, too, with --tiny.",
        ),
    ] = None,
    device: o.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=o.file,
            metavar="FILE",
            help="The CSV to write, by default benchmarks/results/cpu.csv or .../GPU-NAME.csv.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="An older CSV; exit 1 where something became slower."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Seconds, to show that they run; writes nothing.")
    ] = False,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="Times that everything is timed, on a CPU."),
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


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(metavar="indexers|tasks|metrics")],
    as_json: o.Json = False,
) -> None:
    """List what there is to choose from."""
    from topkit.cli.listing import rows

    show(rows(kind), as_json)


@app.command()
def doctor(as_json: o.Json = False) -> None:
    """Look at versions, device and disk; exit 1 when something is broken."""
    from topkit.cli.doctor import examine

    findings = examine()
    show([vars(finding) for finding in findings], as_json)
    broken = [f"{finding.name}: {finding.problem}" for finding in findings if finding.problem]
    if broken:
        raise GateFailed("; ".join(broken))
