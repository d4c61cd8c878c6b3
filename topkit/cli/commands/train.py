"""`topkit train`: the bundled model, or a lightning indexer, anew."""

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
    return parse_name(name, ["reference", "lightning"], "recipe")


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
    device = device or "cuda"
    if name == "lightning":
        typer.echo(_lightning(model, corpus, out, steps, tiny, seed, device, jobs))
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
