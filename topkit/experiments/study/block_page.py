"""A page of blocks, written as HTML and as Markdown, with its figures."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.blocks import Block, Drawn, as_markdown, in_page
from topkit.experiments.study.drawing import families
from topkit.experiments.study.page import render
from topkit.experiments.study.pictures import pictures
from topkit.experiments.study.sheet import Sheet

REPORT = "report.html"


def write_page(
    folder: Path, name: str, title: str, blocks: Sequence[Block], cite: str = ""
) -> Path:
    """Write report.html, NAME.md and figures into a folder; returns the report's path. cite: the figures' line."""
    drawn = [block for block in blocks if isinstance(block, Drawn)]
    rows = [row for block in drawn for panel in block.panels for row in panel.data.get("cells", ())]
    with pictures(len(drawn)) as made:
        sheet = Sheet(folder / "figures", made)
        shown = in_page(blocks, sheet)
        page = render("blocks.html", sheet, cite, title=title, made=shown, families=families(rows))
    markdown = f"# {title}\n\n{as_markdown(blocks, 'figures')}\n"
    for file, text in ((REPORT, page), (f"{name}.md", markdown)):
        write_whole(folder / file, partial(_write, text), parents=False)
    return folder / REPORT


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
