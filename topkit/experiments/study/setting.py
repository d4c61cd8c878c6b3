"""A report's section of one setting: what is seen of it, its figures at each budget, its table."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topkit.experiments.study import headings
from topkit.experiments.study.answer import Answer
from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.cells_table import CellsTable, cells_table
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.section import Part, parts_of
from topkit.experiments.study.sheet import Sheet
from topkit.indexers.budget import Budget


@dataclass(frozen=True)
class Section:
    """A setting: what is seen of it, its parts at each budget, its table."""

    title: str
    slug: str
    verdict: str
    level: str
    parts: list[tuple[str, list[Part]]]
    table: CellsTable
    table_title: str


def section_of(
    findings: Findings,
    several: Sequence[Findings],
    sheet: Sheet,
    names: Sequence[str],
    rows: list[Row],
    budgets: Sequence[Budget] | None,
    found: Sequence[Answer],
) -> Section:
    """A setting at one or several budgets; found: the answers, whose figures the first screen shows."""
    parts: list[tuple[str, list[Part]]] = []
    for one in several:
        named = len(several) > 1
        # What the first screen shows of a setting alone is not shown twice.
        again = named or not any(answer.findings is one for answer in found)
        at = f"-k-{str(one.budget).replace('%', 'pct')}" if named else ""
        parts.append(
            (f"k = {one.budget}" if named else "", parts_of(one, sheet, names, rows, at, again))
        )
    answer = Answer(several[0], (several[0],))
    table = cells_table(findings, budgets)
    seen = headings.of_cells(rows) if budgets is None else table.title
    return Section(findings.curve.title, findings.curve.slug, answer.sentence(), answer.level(), parts, table, seen)  # fmt: skip
