"""The commands, one a file: each reads its words and calls one function of the package."""

from __future__ import annotations

from typing import Annotated

import typer

from topkit.cli.commands.advise import advise
from topkit.cli.commands.bench import bench
from topkit.cli.commands.calibrate import calibrate
from topkit.cli.commands.capture import capture
from topkit.cli.commands.compare import compare
from topkit.cli.commands.doctor import doctor
from topkit.cli.commands.evaluate import evaluate
from topkit.cli.commands.list import list_command
from topkit.cli.commands.measure import measure
from topkit.cli.commands.merge import merge
from topkit.cli.commands.report import report
from topkit.cli.commands.score import score
from topkit.cli.commands.study import study
from topkit.cli.commands.survey import survey
from topkit.cli.commands.train import train
from topkit.cli.commands.verify import verify

app = typer.Typer(
    name="topkit",
    help="How good must an approximate Top-k indexer be before a language model notices?",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from topkit import __version__

        typer.echo(f"topkit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def topkit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """How good must an approximate Top-k indexer be before a language model notices?"""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# In the order of the help.
for command in (
    capture,
    survey,
    measure,
    compare,
    evaluate,
    report,
    advise,
    merge,
    verify,
    study,
    train,
    calibrate,
    score,
    bench,
):
    app.command()(command)
app.command("list")(list_command)
app.command()(doctor)
