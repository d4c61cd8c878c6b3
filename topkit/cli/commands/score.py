"""`topkit score`: what a model can do before any key is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.values import parse_lengths


def score(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option("--out", parser=o.file, metavar="FILE", help="The JSON file to write."),
    ],
    lengths: Annotated[str, typer.Option("--length", help="Tokens: 4k,8k.")] = "4k,8k",
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Prompts for each task and length.")
    ] = 200,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Folder of books-valid.jsonl.xz: perplexity.")
    ] = None,
    seed: o.Seed = 1,
    device: o.Device = None,
    jobs: o.Jobs = 1,
    config: o.Config = None,
) -> None:
    """Score a model with full attention on every task."""
    from topkit.experiments.train.scores import score_model, write_scores

    scores = score_model(
        model,
        lengths=parse_lengths(lengths),
        prompts=samples,
        seed=seed,
        corpus=corpus,
        device=device,
        jobs=jobs,
        report=typer.echo,
    )
    write_scores(out, scores)
