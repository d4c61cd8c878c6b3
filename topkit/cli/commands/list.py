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
    """List what there is to choose from."""
    from topkit.cli.listing import rows

    show(rows(kind), as_json)
