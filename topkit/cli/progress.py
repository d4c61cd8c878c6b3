"""A plan carried out on the screen: what is going to be done, a bar while it is, all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from topkit.cli.screen import show

if TYPE_CHECKING:
    from topkit.experiments.runs.plan import Event, Plan, Progress

R = TypeVar("R")


def carry_out(plan: Plan[R], dry_run: bool, as_json: bool) -> R | None:
    """Say what is going to be done, and do it; for a dry run only say it, and give None."""
    from topkit.experiments.runs.plan import run

    for line in (*plan.notes, *plan.lines()):
        typer.echo(line, err=True)
    if dry_run:
        if as_json:
            show(plan.describe(), as_json=True)
        return None
    # Stdout is for what comes out: what recipes, jobs and runners print is not.
    with bar() as progress, redirect_stdout(sys.stderr):
        return run(plan, progress=progress)


@contextmanager
def bar() -> Iterator[Progress]:
    """What draws a bar from a run's events; none where nothing is left to do."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    bars = Bars(*columns, console=Console(stderr=True, highlight=False))

    def draw(event: Event) -> None:
        for line in event.lines:
            bars.console.print(line, markup=False, soft_wrap=True)
        if not event.jobs:
            return
        if not bars.tasks:
            bars.start()
        if not bars.tasks or event.lines:
            bars.add_task(event.verb, total=event.jobs)
        bars.update(bars.tasks[-1].id, completed=event.done)

    try:
        yield draw
    finally:
        if bars.tasks:
            bars.stop()
