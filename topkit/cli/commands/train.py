"""`topkit train`: the bundled model, a lightning indexer, or projected's maps, anew."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.values import parse_name


def _recipe(name: str) -> str:
    # Eager: a misspelt name is said before what its options lack.
    return parse_name(name, ["reference", "lightning", "projected"], "recipe")


def train(
    name: Annotated[
        str,
        typer.Argument(metavar="reference|lightning|projected", callback=_recipe, is_eager=True),
    ],
    corpus: Annotated[
        Path,
        typer.Option(
            "--corpus", help="Folder of books-train.jsonl.xz: title, author, text a line."
        ),
    ],
    out: o.Out,
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
            "--steps", min=1, help="lightning, projected: batches; by default 1000 and 200."
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option("--rank", min=1, help="projected: dimensions that a key is brought to.")
    ] = 16,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="reference: the second run, from a first's.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Seconds, to show that the recipe runs.")
    ] = False,
    stop_after: Annotated[
        float,
        typer.Option(
            "--stop-after", help="reference, projected: seconds; a rerun goes on from there."
        ),
    ] = math.inf,
    seed: o.Seed = 0,
    device: o.Device = None,
    jobs: o.Jobs = 14,
    config: o.Config = None,
) -> None:
    """Train the bundled model, or a lightning indexer or projected's maps for a model, anew.

    The device is by default the GPU, but the CPU for projected, whose training is small.
    """
    if learnt_of is not None and name == "reference":
        raise typer.BadParameter(f"reference is learnt of no model; got {learnt_of!r}")
    model = learnt_of or model
    if name == "projected":
        _projected(model, corpus, out, steps, rank, tiny, stop_after, seed, device)
        return
    device = device or "cuda"
    if name == "lightning":
        typer.echo(_lightning(model, corpus, out, steps or 1000, tiny, seed, device, jobs))
        return
    from topkit.experiments.train.train import Recipe, train_reference

    recipe = Recipe() if start_from is None else Recipe.second()
    done = train_reference(
        corpus,
        out,
        recipe=replace(Recipe.tiny() if tiny else recipe, seed=seed or recipe.seed),
        start_from=start_from,
        device=device,
        workers=jobs,
        stop_after=stop_after,
        report=typer.echo,
    )
    typer.echo(
        f"{out / 'model'} holds the model" if done else f"stopped; {out} can be gone on with"
    )


def _lightning(
    model: str,
    corpus: Path,
    out: Path,
    steps: int,
    tiny: bool,
    seed: int,
    device: str,
    jobs: int,
) -> Path:
    from topkit.experiments.train.lightning import train_for

    size = {"steps": 2, "rows": 1, "length": 256, "workers": 1}
    if not tiny:
        size = {"steps": steps, "workers": jobs}
    return train_for(model, corpus, out, device=device, seed=seed, report=typer.echo, **size)


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
