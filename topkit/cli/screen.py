"""Rows on the screen: a table, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

# Columns of a page that nobody looks at: a pipe or a file.
_PAGE = 200


def show(table: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PAGE
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in table[0]:
        shown.add_column(name, overflow="fold")
    for row in table:
        shown.add_row(*(str(x) for x in row.values()))
    console.print(shown)


def say_unfinished(run: Path, as_json: bool, lacks: str | None = None) -> None:
    """Say that a shard is done, and that others of its run are not: its rows alone are no result.

    lacks: what this machine lacks to write a page, so that even the last shard writes none.
    """
    line = f"jobs of other shards are left; `topkit report {run}` says which, once there are rows"
    if lacks:
        line = f"no page was written: {lacks}; once all shards are done, `topkit report {run}` writes it"
    typer.echo(line, err=True)
    typer.echo(json.dumps({"run": str(run), "finished": False}) if as_json else run)
