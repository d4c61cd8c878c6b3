"""A page as blocks, written as Markdown or as HTML: headings, paragraphs, lists, tables, figures."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure


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


@dataclass(frozen=True)
class Drawn:
    """A figure by the name of its files, drawn where it is saved."""

    name: str
    draw: Callable[[], Figure]
    caption: str


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
        case Drawn(name, _, caption):
            return f"![{caption}]({figures}/{name}.png)\n\n{caption}"


def as_html(block: Block) -> str:
    """A block but a figure as HTML; what stands in backquotes is code."""
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Items(lines):
            return f"<ul>{''.join(f'<li>{_inline(line)}</li>' for line in lines)}</ul>"
        case Table(columns, rows):
            head = "".join(f"<th>{_inline(column)}</th>" for column in columns)
            body = "\n".join(
                f"<tr>{''.join(f'<td>{_inline(text)}</td>' for text in row)}</tr>" for row in rows
            )
            return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        case Drawn(_, _, caption):
            return f"<p class='note'>{_inline(caption)}</p>"


def _inline(text: str) -> str:
    """Escaped, with what stands in backquotes as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))
