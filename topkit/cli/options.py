"""Options that several commands share, each written once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from topkit.cli.config import read_config
from topkit.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


def _device(name: str | None) -> str | None:
    if name is None or name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(f"--device must be cpu, cuda or cuda:N; got {name!r}")
    import torch

    number, there = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= there:
        raise InputError(f"--device {name}: torch sees {there} GPUs here; use --device cpu")
    return name


def _dtype(name: str | None) -> str | None:
    if name is not None and name not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    return name


def folder(name: str) -> Path:
    """A folder to write into: there already, or to be made."""
    if not name or (Path(name).exists() and not Path(name).is_dir()):
        raise typer.BadParameter(f"{name} is a file" if name else "give a folder")
    return Path(name)


def file(name: str) -> Path:
    """A file to write."""
    if not name or Path(name).is_dir():
        raise typer.BadParameter(f"{name} is a folder" if name else "give a file")
    return Path(name)


Seed = Annotated[
    int, typer.Option("--seed", help="Seed of the prompts, and of indexers that draw at random.")
]
Device = Annotated[
    str | None, typer.Option("--device", callback=_device, help="cpu, cuda or cuda:N.")
]
DType = Annotated[
    str | None, typer.Option("--dtype", callback=_dtype, help="float32, bfloat16 or float16.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Rows in one forward pass.")
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="GB",
        help="GB that a process may take, of the GPU or, without one, of the host: fewer rows go together where they need more.",
    ),
]
_JOBS = typer.Option("--jobs", min=1, help="Worker processes.")
Jobs = Annotated[int, _JOBS]
MaybeJobs = Annotated[int | None, _JOBS]
Runner = Annotated[
    str | None,
    typer.Option(
        "--runner",
        metavar="serial|pool|ray",
        help="Run the jobs in this process, in a pool of processes, or as Ray tasks (ray:cpus=4,gpus=1).",
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Run share I of N only, 0/N to N-1/N. Shares write into one folder, or each into its own.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")]
Force = Annotated[bool, typer.Option("--force", help="Compute again what is already there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Csv = Annotated[
    Path | None,
    typer.Option(
        "--csv", parser=file, metavar="FILE|-", help="Write the numbers as CSV; - prints."
    ),
]
Latex = Annotated[
    Path | None,
    typer.Option("--latex", parser=file, metavar="FILE|-", help="Write a LaTeX table; - prints."),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", parser=file, metavar="FILE", help="Write a page that needs nothing else."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=read_config,
        help="A YAML file with lines `option: value`, for options that are not given.",
    ),
]

MODEL_HELP = "`reference` (bundled), `smollm2`, a folder, a .gguf file, or OWNER/NAME@REVISION of the Hugging Face hub."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
TASK_HELP = "A task (topkit list tasks): name, or name:parameter=value,parameter=value."
MaybeTask = Annotated[str | None, typer.Option("--task", help=TASK_HELP)]
Length = Annotated[str, typer.Option("--length", help="Length of a prompt in tokens: 4096 or 4k.")]
Samples = Annotated[
    int, typer.Option("--samples", min=1, help="How many haystacks, or pieces of text.")
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        parser=folder,
        metavar="FOLDER",
        help="Folder to write into; a rerun computes what is missing there.",
    ),
]
_INDEXER = typer.Option(
    "--indexer", help="An indexer (topkit list indexers), such as quest:page_size=16; repeatable."
)
Indexers = Annotated[list[str], _INDEXER]
MaybeIndexers = Annotated[list[str] | None, _INDEXER]
_BUDGETS = typer.Option("-k", help="Keys kept: numbers, or per cent of the context, 16,32,1%.")
Budgets = Annotated[str, _BUDGETS]
MaybeBudgets = Annotated[str | None, _BUDGETS]
ByteBudget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="bytes=N",
        help="Bytes read to choose the keys, the same for all indexers: bytes=64 for each token and "
        "layer, or bytes=0.06 of what the keys take; several with commas.",
    ),
]
Margin = Annotated[
    float,
    typer.Option("--margin", min=0, max=1, help="Loss of accuracy that counts as none."),
]
Layout = Annotated[
    str | None,
    typer.Option("--layout", metavar="bhtd|bthd|thd", help="The order of a file's dimensions."),
]
Scaling = Annotated[
    float | None,
    typer.Option("--scaling", help="Factor of the dot products; by default D ** -0.5."),
]
