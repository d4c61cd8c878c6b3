"""The page of a comparison: the verdict, what is lost, and where."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import topkit
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study import fidelity_figures as figures
from topkit.experiments.study.blocks import Block, Heading, Items, Table, in_page
from topkit.experiments.study.cell_rows import Row, family, group_of, shortened
from topkit.experiments.study.drawing import families
from topkit.experiments.study.kinds import name_of
from topkit.experiments.study.page import render
from topkit.experiments.study.sheet import Sheet, Shown
from topkit.indexers.spec import recorded

_LAYERS = {"own": "recall", "lost": "mass_lost"}


def compare_page(summary: Mapping[str, Any], facts: Sequence[tuple[str, str]]) -> str:
    """The page of a Comparison's summary, as HTML that needs nothing else.

    facts: terms of the block of the run, and what they are.
    """
    sheet = Sheet(Path(), None)
    layers = _by_layer(summary)
    shown = _figures(sheet, layers)
    panels = {"panels": shown, "caption": "The mean of each layer.", "name": "by-layer"}
    before: list[Block] = [_numbers(summary)]
    after: list[Block] = [
        Heading("Layer by layer"),
        _means(summary["by_layer"], "layer"),
        Heading("Sequence by sequence"),
        _means(summary["by_sequence"], "sample"),
        Heading("The run"),
        Items([f"{term}: {text}" for term, text in (*_asked(summary), *facts)]),
    ]
    made = [*in_page(before, sheet), *([panels] if shown else []), *in_page(after, sheet)]
    word, title = str(summary["verdict"]), str(summary["sentence"])
    title = title if title.lower().startswith(word) else f"{word}: {title}"
    return render(
        "blocks.html",
        sheet,
        f"topkit {topkit.__version__}, {summary['candidate']} against {summary['baseline']} at k = {summary['k']}",
        title=title[:1].upper() + title[1:],
        made=made,
        families=families(layers) if shown else [],
    )


def _numbers(summary: Mapping[str, Any]) -> Table:
    recall, mass = summary["recall"], summary["mass"]
    rows = [["recall", *_row(recall, recall["mean"], recall["p1"])]]
    if mass:
        rows.append([f"mass lost ({mass['of']})", *_row(mass, mass["lost"], mass["p99"])])
    tail = "1st percentile (lost: 99th)"
    return Table(["", "mean", "interval", tail, "worst row", "margin"], rows)


def _row(numbers: Mapping[str, Any], mean: float, tail: float) -> list[str]:
    low, high, margin = numbers["low"], numbers["high"], numbers["margin"]
    where = " ".join(f"{axis} {place}" for axis, place in numbers["worst_row"].items())
    return [
        f"{mean:.5f}",
        "" if low is None else f"{low:.5f} to {high:.5f}",
        f"{tail:.4f}",
        f"{numbers['worst']:.4f} at {where}",
        "" if margin is None else f"{margin:g}",
    ]


def _by_layer(summary: Mapping[str, Any]) -> list[Row]:
    cell = Cell(recorded(summary["candidate"]))
    look: Row = {
        "name": name_of(cell),
        "label": shortened(name_of(cell)),
        "kind": group_of(cell),
        "family": family(cell),
        "budget": summary["k"],
        "front": False,
    }
    layers = summary["by_layer"]
    return [
        look
        | {"layer": one["layer"], "last": one is layers[-1]}
        | {name: one.get(of) for name, of in _LAYERS.items()}
        for one in layers
    ]


def _figures(sheet: Sheet, layers: Sequence[Row]) -> list[Shown]:
    """Nothing of one layer, which the table says."""
    if len(layers) < 2:
        return []
    names = families(layers)
    return [
        sheet.show(
            Shown(f"{name}-by-layer", f"{figures.WORDS[name]}, by layer",
                  f"{figures.WORDS[name]} by layer: from {min(values):.3f} to {max(values):.3f}"),
            f"{name}-layer", partial(figures.by_layer, names, name), {"cells": layers},
        )
        for name in _LAYERS
        if (values := [row[name] for row in layers if row[name] is not None])
    ]  # fmt: skip


def _means(rows: Sequence[Mapping[str, Any]], by: str) -> Table:
    columns = [name for name in ("rows", "recall", "mass_lost", "rows_changed") if name in rows[0]]
    heads = [name.replace("_", " ") for name in (by, *columns)]
    return Table(heads, [[_said(row[name]) for name in (by, *columns)] for row in rows])


def _said(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _asked(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    margins = [f"{n}={summary[n]['margin']:g}" for n in ("recall", "mass") if summary[n] and summary[n]["margin"] is not None]  # fmt: skip
    return [
        ("baseline", f"`{summary['baseline']}`"),
        ("candidate", f"`{summary['candidate']}`"),
        ("k", str(summary["k"])),
        ("margins", ", ".join(margins)),
        ("sequences", f"{summary['sequences']:,} ({summary['copies']:,} more are copies)"),
        ("rows", f"{summary['rows']:,}, and {summary['left_out']:,} left out"),
        ("rows changed", f"{summary['rows_changed']:.1%}"),
    ]
