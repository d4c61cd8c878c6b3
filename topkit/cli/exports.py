"""Where a command's numbers go: the screen, JSON, CSV, LaTeX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from topkit.cli.table_text import Rows, csv_text, latex_text
from topkit.errors import InputError

STDOUT = Path("-")


@dataclass(frozen=True)
class Exports:
    """What is asked for beside the screen; a file of the name - is stdout.

    Raises: InputError where several would be printed at once.
    """

    csv: Path | None
    latex: Path | None
    as_json: bool

    def __post_init__(self) -> None:
        printed = [name for name, there in self._printed.items() if there]
        if len(printed) > 1:
            raise InputError(
                f"{' and '.join(printed)} would both be printed; name a file for all but one, as --csv cells.csv"
            )

    @property
    def _printed(self) -> dict[str, bool]:
        return {
            "--csv -": self.csv == STDOUT,
            "--latex -": self.latex == STDOUT,
            "--json": self.as_json,
        }

    @property
    def wanted(self) -> bool:
        """Whether there are any."""
        return self.as_json or self.csv is not None or self.latex is not None

    @property
    def printed(self) -> bool:
        """Whether stdout is taken by one of them."""
        return any(self._printed.values())

    def write(self, whole: Any, rows: Rows, shown: Rows, comment: str = "") -> None:
        """Write and print them: the whole as JSON, rows of plain numbers as CSV, rows of texts as LaTeX."""
        if self.csv is not None:
            _put(csv_text(rows), self.csv)
        if self.latex is not None:
            _put(latex_text(shown, comment), self.latex)
        if self.as_json:
            typer.echo(json.dumps(whole, indent=1))


def _put(text: str, file: Path) -> None:
    if file == STDOUT:
        typer.echo(text, nl=False)
    else:
        file.write_text(text, encoding="utf-8")
