"""The console script: thin commands over functions that a program may call as well."""

from __future__ import annotations

import sys

from topkit.cli.exits import run


def main() -> None:
    """Run the command line, and leave with its exit code."""
    from topkit.cli.commands import app

    sys.exit(run(app))
