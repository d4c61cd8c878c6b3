"""A page as blocks, written as Markdown here and as HTML by blocks.html: headings, lists, tables, figures."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.sheet import Sheet, Shown


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    """A list; none is no block."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts below the heads of columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Panel:
    """A figure of the page; kind: what is drawn alike. `data` fills what the chart names."""

    name: str
    kind: str
    draw: Callable[[], alt.TopLevelMixin]
    data: Mapping[str, Sequence[Row]]
    alt: str


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure by the name of its files, in the page as panels."""

    name: str
    draw: Callable[[], alt.TopLevelMixin]
    data: Mapping[str, Sequence[Row]]
    caption: str
    panels: Sequence[Panel]


Block = Heading | Paragraph | Items | Table | Drawn


def as_markdown(blocks: Iterable[Block], figures: str) -> str:
    """The blocks as Markdown; `figures`: the path from the page to the folder of its figures."""
    return "\n\n".join(filter(None, (_markdown(block, figures) for block in blocks)))


def _markdown(block: Block, figures: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Items(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Table(columns, rows):
            ruled = [columns, ["---"] * len(columns), *rows]
            return "\n".join(f"| {' | '.join(row)} |" for row in ruled)
        case Drawn(name=name, caption=caption):
            return f"![{caption}]({figures}/{name}.svg)\n\n{caption}"


def in_page(blocks: Iterable[Block], sheet: Sheet) -> list[dict[str, Any]]:
    """The blocks as blocks.html takes them; figures go into the sheet, and their pictures are written."""
    return [_for_page(block, sheet) for block in blocks]


def _for_page(block: Block, sheet: Sheet) -> dict[str, Any]:
    match block:
        case Heading(text, level):
            return {"heading": text, "level": level}
        case Paragraph(text):
            return {"text": text}
        case Items(lines):
            return {"lines": lines}
        case Table(columns, rows):
            return {"columns": columns, "rows": rows}
        case Drawn():
            sheet.save(block.name, block.name, block.draw, block.data)
            shown = [
                sheet.show(Shown(p.name, "", p.alt), p.kind, p.draw, p.data) for p in block.panels
            ]
            return {"panels": shown, "caption": block.caption, "name": block.name}
