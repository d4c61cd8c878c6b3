"""The page of a measurement: which indexers keep what attention looks at, by k and by layer."""

# pyright: strict, reportUnknownLambdaType=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute

from topkit.errors import InputError
from topkit.experiments.measure.measured import Measured
from topkit.experiments.measure.summary import EXACT
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.fidelity_rows import LABELS
from topkit.experiments.runs.group_sums import GroupSums
from topkit.experiments.runs.parts import batches
from topkit.experiments.study import fidelity_figures as figures
from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, Table, in_page
from topkit.experiments.study.cell_rows import Row, family, group_of, shortened
from topkit.experiments.study.citation import citation
from topkit.experiments.study.cost_words import at_cost
from topkit.experiments.study.drawing import families
from topkit.experiments.study.kinds import name_of
from topkit.experiments.study.measured_run import absent, measured_of
from topkit.experiments.study.page import render
from topkit.experiments.study.run_facts import run_facts
from topkit.experiments.study.sheet import Sheet, Shown
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import recorded

pc: Any = pyarrow.compute
_METRICS = ("mass", "recall")
NOT_SHOWN = (
    "Fidelity says how close a choice is to the exact one, not whether a model notices: `topkit evaluate` and "
    "`topkit study` ask the model. Recall counts keys alike, whatever their weight; mass weighs them."
)


def measure_page(run: Path) -> str:
    """The page of a measurement's folder, as HTML that needs nothing else."""
    measured, described = measured_of(run)
    summary = measured.summary()
    if not summary:
        raise InputError(f"{run} holds no rows of a measurement; run `topkit measure` to its end")
    sheet = Sheet(Path(), None)
    cells = _cells(summary)
    shown = [*_by_k(sheet, cells), *_by_layer(sheet, _layers(measured, cells))]
    panels = {"panels": shown, "caption": _caption(summary), "name": "fidelity"} if shown else None
    lacking = absent(measured, described)
    before: list[Block] = [*([Heading("Not finished"), Items(lacking)] if lacking else []), _table(summary)]  # fmt: skip
    after: list[Block] = [
        Heading("What this does not show"),
        Paragraph(NOT_SHOWN),
        Heading("The run"),
        Items([f"{term}: {text}" for term, text in _facts(described)]),
    ]
    made = [*in_page(before, sheet), *([panels] if panels else []), *in_page(after, sheet)]
    return render(
        "blocks.html",
        sheet,
        citation([described], [run]),
        title=sentence(summary),
        made=made,
        families=families(cells),
    )


def sentence(summary: Sequence[Mapping[str, Any]]) -> str:
    """What keeps most of the attention weight and what least, at the budget of most indexers."""
    budgets = [row["budget"] for row in summary]
    budget = max(dict.fromkeys(budgets), key=budgets.count)
    # Exact Top-k has all of it, and says nothing.
    at = [row for row in summary if row["budget"] == budget and row["mass"] is not None]
    exact = next((row for row in at if _cell(row).indexer == _exact()), None)
    # Nor has one that ignores the keys anything to say.
    at = [row for row in at if group_of(_cell(row)) not in ("exact", "control")] or at
    if not at:
        return f"No attention weight was measured at k = {budget}."
    best, worst = (f(at, key=lambda row: row["mass"]) for f in (max, min))
    cost = at_cost(_share(best, exact))
    said = f"{_name(best)} keeps {best['mass']:.2f} of the attention weight with k = {budget}{_of(best)}"
    said += cost and f",{cost}"
    if best is worst:
        return f"{said}."
    return f"{said}, the most of {len(at)} indexers; {_name(worst)} keeps {worst['mass']:.2f}, the least."


def _of(row: Mapping[str, Any]) -> str:
    ratio = row["mass_ratio"]
    return f", {ratio:.1%} of what as many keys can have" if ratio is not None else ""


def _share(row: Mapping[str, Any], exact: Mapping[str, Any] | None) -> float | None:
    """The bytes that choosing reads, over exact Top-k's."""
    read, base = row.get("bytes_read"), exact and exact.get("bytes_read")
    return read / base if read is not None and base and row is not exact else None


def _exact() -> Any:
    return recorded("exact()")


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(recorded(row["indexer"]), parse_budget(row["budget"]))


def _name(row: Mapping[str, Any]) -> str:
    return name_of(_cell(row))


def _cells(summary: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows for the figures, one an indexer and budget."""
    rows: list[Row] = []
    for one in summary:
        cell = _cell(one)
        rows.append(
            {
                "indexer": one["indexer"],
                "name": name_of(cell),
                "label": shortened(name_of(cell)),
                "kind": group_of(cell),
                "family": family(cell),
                "budget": one["budget"],
                "kept": one["k"],
                "front": False,
                **{name: _number(one[name]) for name in _METRICS},
            }
        )
    largest = {
        row["name"]: max(r["kept"] for r in rows if r["name"] == row["name"]) for row in rows
    }
    return [{**row, "last": row["kept"] == largest[row["name"]]} for row in rows]


def _layers(measured: Measured, cells: Sequence[Row]) -> list[Row]:
    """Rows for the figures, one a layer of each indexer, at the budget of most; none of one layer."""
    budgets = [row["budget"] for row in cells]
    budget = max(dict.fromkeys(budgets), key=budgets.count)
    sums = GroupSums(["indexer", "budget", "layer"], list(_METRICS))
    for piece in measured.pieces:
        tables = batches([piece], labels=LABELS) if isinstance(piece, Path) else [piece]
        for table in tables:
            own = (pc.field("level") == "head") & (pc.field("reference") == "head")
            sums.add(table.filter(own & ~pc.field("trivial") & (pc.field("budget") == budget)))
    means = sums.means("rows").to_pylist()
    last = max((row["layer"] for row in means), default=0)
    if not any(row["layer"] != last for row in means):
        return []
    looks = {row["indexer"]: row for row in cells if row["budget"] == budget}
    return [
        {**looks[row["indexer"]], "layer": row["layer"], "last": row["layer"] == last}
        | {name: _number(row[name]) for name in _METRICS}
        for row in sorted(means, key=lambda row: (row["indexer"], row["layer"]))
    ]


def _by_k(sheet: Sheet, cells: Sequence[Row]) -> list[Shown]:
    """Nothing where every indexer was asked at one budget."""
    if len({row["budget"] for row in cells}) < 2:
        return []
    return _shown(sheet, cells, "k", figures.by_k)


def _by_layer(sheet: Sheet, layers: Sequence[Row]) -> list[Shown]:
    return _shown(sheet, layers, "layer", figures.by_layer) if layers else []


def _shown(sheet: Sheet, rows: Sequence[Row], across: str, draw: Any) -> list[Shown]:
    names, count = families(rows), len({row["name"] for row in rows})
    return [
        sheet.show(
            Shown(f"{metric}-by-{across}", figures.WORDS[metric] + f", by {across}",
                  f"{metric} by {across} of {count} indexers: {_ends(rows, metric)}"),
            f"{metric}-{across}", partial(draw, names, metric), {"cells": rows},
        )
        for metric in _METRICS if any(row[metric] is not None for row in rows)
    ]  # fmt: skip


def _ends(rows: Sequence[Row], metric: str) -> str:
    there = [row for row in rows if row[metric] is not None]
    least, most = (f(there, key=lambda row: row[metric]) for f in (min, max))
    return f"from {least[metric]:.2f} ({least['name']}) to {most[metric]:.2f} ({most['name']})"


def _table(summary: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["indexer", "k", "recall [95 %]", "1st percentile", "worst", "mass", "over the best mass", "output error", "KiB read", "B a key"]  # fmt: skip
    named, noted = (any(test(row) for row in summary) for test in (_named, lambda r: r["note"]))
    rows = [
        [
            f"`{_name(row)}`",
            str(row["budget"]),
            _ranged(row),
            *(_short(row[n]) for n in ("recall_p1", "worst", "mass", "mass_ratio", "output_error")),
            _short(row["bytes_read"] and row["bytes_read"] / 1024, 1),
            _short(row["bytes_read_per_key"], 1),
            *([str(row["against"])] if named else []),
            *([row["note"]] if noted else []),
        ]
        for row in summary
    ]
    return Table([*columns, *(["recall against"] if named else []), *(["note"] if noted else [])], rows)  # fmt: skip


def _named(row: Mapping[str, Any]) -> bool:
    return row["against"] != EXACT


def _caption(summary: Sequence[Mapping[str, Any]]) -> str:
    return f"Means over {sum(row['rows'] or 0 for row in summary):,} rows: layers, heads and positions of all samples. By layer: at the k of most indexers."


def _facts(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The block of the run; of what it measured, not of a model that nobody ran."""
    facts = [(term, text) for term, text in run_facts([described], {}) if term != "model"]
    asked = described["asked"][-1] if described["asked"] else {}
    origin = asked.get("capture") or {}
    shown = [(f"capture's {name}", str(value)) for name, value in origin.items() if isinstance(value, str | int | float)]  # fmt: skip
    layers = ", ".join(map(str, asked.get("layers", ())))
    return [*shown, *([("layers", layers)] if layers else []), *facts]


def _ranged(row: Mapping[str, Any]) -> str:
    if row["recall"] is None:
        return ""
    ends = "one sample" if row["low"] is None else f"{row['low']:.3f}, {row['high']:.3f}"
    return f"{row['recall']:.3f} [{ends}]"


def _short(value: Any, digits: int = 3) -> str:
    number = _number(value)
    return "" if number is None else f"{number:.{digits}f}"


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
