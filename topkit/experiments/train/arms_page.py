"""The page of a study that trains, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.blocks import Block, Drawn, Heading, Items, as_html, as_markdown
from topkit.experiments.study.page import PAGE, save_figure

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
    body = [
        save_figure(folder / "figures", block.name, block.draw(), block.caption)
        if isinstance(block, Drawn)
        else as_html(block)
        for block in made
    ]
    texts = {
        "report.html": PAGE.format(title=title, body="\n".join(body)),
        f"{name}.md": f"# {title}\n\n{as_markdown(made, 'figures')}\n",
    }
    for file, text in texts.items():
        content = text.encode()
        write_whole(folder / file, lambda to, content=content: to.write_bytes(content))
    return folder / "report.html"
