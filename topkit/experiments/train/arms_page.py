"""The page of a study that trains, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topkit.experiments.study import block_page
from topkit.experiments.study.blocks import Block, Heading, Items

# Of study.json, what is said elsewhere on the page.
SILENT = ("parts", "arms")


def write_page(
    folder: Path,
    name: str,
    title: str,
    blocks: Sequence[Block],
    study: Mapping[str, Any],
    absent: Sequence[str],
) -> Path:
    """Write report.html, NAME.md and figures into a folder; returns the report's path."""
    run = [f"{key}: {value}" for key, value in study.items() if key not in SILENT]
    made = [*blocks, Heading("The run"), Items([*absent, *run])]
    return block_page.write_page(folder, name, title, made)
