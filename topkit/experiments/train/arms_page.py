"""The page of a study that trains, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from topkit.experiments.study import block_page
from topkit.experiments.study.blocks import Block, Heading, Items
from topkit.experiments.study.citation import of_study
from topkit.experiments.train.found import Start, starts

# Of study.json, what is said elsewhere on the page.
SILENT = ("parts", "arms")


def write_page(
    folder: Path,
    name: str,
    title: str,
    blocks: Callable[[list[Start]], Iterable[Block]],
    study: Mapping[str, Any],
) -> Path:
    """Write report.html, NAME.md and figures into a study's folder; returns the report's path.

    blocks: of what its models found. Raises: InputError where no start has been measured.
    """
    found = starts(folder, study)
    absent = [f"{name} is not there yet" for name in found[0].absent]
    run = [f"{key}: {value}" for key, value in study.items() if key not in SILENT]
    made = [*blocks(found), Heading("The run"), Items([*absent, *run])]
    return block_page.write_page(folder, name, title, made, of_study(folder, study))
