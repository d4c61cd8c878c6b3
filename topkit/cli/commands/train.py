"""`topkit train`: the bundled model, a lightning indexer, or projected's maps, anew."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from topkit.cli import options as o
from topkit.cli.values import parse_name


def _recipe(name: str) -> str:
    # Eager: a misspelt name is said before what its options lack.
    return parse_name(name, ["reference", "lightning", "projected", "sft"], "recipe")


def train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="reference|lightning|projected|sft", callback=_recipe, is_eager=True
        ),
    ],
    out: o.Out,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            help="Folder of books-train.jsonl.xz: title, author, text a line. sft: without it, the bundled excerpt.",
        ),
    ] = None,
    learnt_of: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As --model.", show_default=False)
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", help="lightning, projected: the model whose attention is learnt."),
    ] = "reference",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=0, help="lightning, projected: batches; by default 1000 and 200."
        ),
    ] = None,
    sparse_steps: Annotated[
        int | None,
        typer.Option(
            "--sparse-steps", min=0, help="lightning: batches of the sparse stage; by default 500."
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option("--data", metavar="books|mixture", help="lightning: what it is learnt on."),
    ] = "mixture",
    index_heads: Annotated[
        int, typer.Option("--index-heads", min=1, help="lightning: heads of the indexer.")
    ] = 8,
    index_dim: Annotated[
        int, typer.Option("--index-dim", min=1, help="lightning: numbers of an index key.")
    ] = 64,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="lightning: keys of the sparse stage.")
    ] = 256,
    answers: Annotated[
        float,
        typer.Option(
            "--answers", min=1, help="lightning: how often a query counts that an answer follows."
        ),
    ] = 1.0,
    train_model: Annotated[
        bool,
        typer.Option(
            "--train-model",
            help="lightning: the sparse stage trains the model too, into OUT/model; without, it stays frozen, for "
            "the indexer is to stand in for Top-k of the model as it is.",
        ),
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="lightning: a file of int8 matrices, half as large.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="lightning: minutes on a CPU.")] = False,
    attention: Annotated[
        str, typer.Option("--attention", metavar="topk|dense", help="sft: what is trained through.")
    ] = "topk",
    ratio: Annotated[
        str | None,
        typer.Option(
            "--ratio", help="sft: share of the visible keys that a query keeps, as 1% or 0.01."
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="sft: sequences of a batch.")
    ] = None,
    length: Annotated[
        str | None, typer.Option("--length", help="sft: tokens of a sequence, as 4k.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0, help="sft: the learning rate's peak.")
    ] = None,
    difference: Annotated[
        Path | None,
        typer.Option(
            "--difference",
            help="sft: no training; write the model that a difference makes of MODEL.",
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option("--rank", min=1, help="projected: dimensions that a key is brought to.")
    ] = 16,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="4m|14m|60m|150m",
            help="reference: both runs of the recipe at a size; torchrun shares its batches among GPUs.",
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            help="reference: the second run, from a first's model; lightning: weights, a file or a name.",
        ),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Seconds, to show that the recipe runs.")
    ] = False,
    stop_after: Annotated[
        float,
        typer.Option(
            "--stop-after", min=0, help="Seconds from the start on; a rerun goes on from there."
        ),
    ] = math.inf,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="The same in minutes.")
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    jobs: o.MaybeJobs = None,
    config: o.Config = None,
) -> None:
    """Train the bundled model, or a lightning indexer or projected's maps for a model, or go on with a model.

    sft goes on with MODEL's training on the task mixture, with Top-k or with dense attention, all else alike.
    The device is by default the GPU, but the CPU for projected, whose training is small.
    """
    if learnt_of is not None and name == "reference":
        raise typer.BadParameter(f"reference is learnt of no model; got {learnt_of!r}")
    model = learnt_of or model
    # They make batches; of more than cores each would wait for the others' imports.
    jobs = jobs or min(14, os.cpu_count() or 1)
    stop_after = stop_after if minutes is None else min(stop_after, 60 * minutes)
    if name == "sft":
        how = {"corpus": corpus, "attention": attention, "ratio": ratio, "stop_after": stop_after}
        sizes = {"steps": steps, "rows": rows, "length": length, "peak": rate}
        _sft(model, out, how, sizes, difference, tiny, seed, device, jobs)
        return
    if corpus is None:
        raise typer.BadParameter("give the books to train on: --corpus FOLDER")
    if name == "projected":
        _projected(model, corpus, out, steps, rank, tiny, stop_after, seed, device)
        return
    if name == "lightning":
        sizes = {
            "heads": index_heads,
            "dim": index_dim,
            "keep": keep,
            "answers": answers,
            "seed": seed,
        }
        counts = {"steps": steps, "sparse_steps": sparse_steps}
        sizes |= {key: count for key, count in counts.items() if count is not None}
        how = {"data": data, "start_from": start_from, "stop_after": stop_after, "small": small}
        size = "tiny" if tiny else "quick" if quick else ""
        _lightning(model, corpus, out, {**sizes, "model_too": train_model}, how, size, device, jobs)
        return
    device = device or "cuda"
    how = {"device": device, "workers": jobs, "stop_after": stop_after, "report": typer.echo}
    done = _reference(corpus, out, size, start_from, tiny, seed, how)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
        typer.echo(f"{out / 'model'} holds the model" if done else _go_on(out))


def _reference(
    corpus: Path,
    out: Path,
    size: str | None,
    start_from: str | None,
    tiny: bool,
    seed: int,
    how: dict[str, Any],
) -> bool:
    from topkit.experiments.train.sizes import train_size
    from topkit.experiments.train.train import Recipe, train_reference

    if size is not None:
        if start_from is not None:
            raise typer.BadParameter("--size has both runs of the recipe; leave --start-from out")
        return train_size(size, corpus, out, seed=seed, tiny=tiny, **how)
    recipe = Recipe() if start_from is None else Recipe.second()
    recipe = replace(Recipe.tiny() if tiny else recipe, seed=seed or recipe.seed)
    return train_reference(corpus, out, recipe=recipe, start_from=start_from, **how)


# Forms of a training that show that it runs, and that take minutes on two cores.
_STAGES = {
    "tiny": {"steps": 2, "sparse_steps": 1, "queries": 64},
    "quick": {"steps": 80, "sparse_steps": 20, "queries": 512},
}
_BATCHES = {
    "tiny": {"rows": 1, "length": 256, "most": 1, "workers": 1},
    "quick": {"rows": 1, "length": 1024, "most": 8, "workers": 1},
}


def _lightning(
    model: str,
    corpus: Path,
    out: Path,
    sizes: dict[str, Any],
    how: dict[str, Any],
    size: str,
    device: str | None,
    jobs: int,
) -> None:
    from topkit.experiments.train.stages import Stages, train_for

    stages = Stages(**{**_STAGES.get(size, {}), **sizes})
    batches = _BATCHES.get(size, {"workers": jobs})
    device = device or ("cpu" if size else "cuda")
    path = train_for(model, corpus, out, stages, device=device, report=typer.echo, **batches, **how)
    done = f"{path}\nuse it as --indexer lightning:weights={path}"
    typer.echo(done if path else _go_on(out))


def _go_on(out: Path) -> str:
    return f"stopped at a checkpoint; run the same command again to go on in {out}"


def _sft(
    model: str,
    out: Path,
    how: dict[str, Any],
    sizes: dict[str, Any],
    difference: Path | None,
    tiny: bool,
    seed: int,
    device: str | None,
    jobs: int,
) -> None:
    from topkit.experiments.train.sft import Sft, rebuild, train_sft
    from topkit.grammar.lengths import parse_length

    if difference is not None:
        typer.echo(f"{rebuild(model, difference, out)} holds the model")
        return
    if sizes["length"] is not None:
        sizes["length"] = parse_length(sizes["length"])
    said = {name: size for name, size in sizes.items() if size is not None}
    recipe = replace(Sft.tiny() if tiny else Sft.of(model), seed=seed, **said)
    device = device or ("cpu" if tiny else "cuda")
    workers = 0 if tiny else jobs
    done = train_sft(
        model, out=out, recipe=recipe, device=device, workers=workers, report=typer.echo, **how
    )
    typer.echo(f"{out / 'model'} holds the model" if done else _go_on(out))


def _projected(
    model: str,
    corpus: Path,
    out: Path,
    steps: int | None,
    rank: int,
    tiny: bool,
    stop_after: float,
    seed: int,
    device: str | None,
) -> None:
    from topkit.experiments.train.projected import train_projected_for

    size = {"steps": 2, "length": 128} if tiny else {"steps": steps or 200}
    path = train_projected_for(
        model,
        corpus,
        out,
        rank=rank,
        device=device,
        seed=seed,
        stop_after=stop_after,
        report=typer.echo,
        **size,
    )
    done = f"{path}\nuse it as --indexer projected:weights={path}"
    typer.echo(done if path else f"stopped; {out} can be gone on with")
