"""`topkit list`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.screen import show


def list_command(
    kind: Annotated[str, typer.Argument(metavar="indexers|tasks|metrics|studies")],
    as_json: o.Json = False,
) -> None:
    """List what there is to choose from; --json has the formulas of what each indexer costs."""
    from topkit.cli.listing import rows, with_formulas

    table = rows(kind)
    show(with_formulas(table) if as_json and kind == "indexers" else table, as_json)
