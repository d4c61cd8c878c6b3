"""The figure of two models: what each indexer scores with the one against what it scores with the other."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import altair as alt

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.cell_rows import Row, family, label_of, shortened
from topkit.experiments.study.drawing import INK, WIDTH, by_family, families, layered
from topkit.experiments.study.models_compared import Comparison
from topkit.experiments.study.sheet import Sheet, Shown

CAPTION = (
    "Each indexer with two models: what it scores minus what exact Top-k scores at the same budgets. On the "
    "line it stands alike with both."
)
NAME = "accuracy-by-model"


def by_model(names: Sequence[str], words: Sequence[str], goal: str, legend: bool = False) -> alt.LayerChart:  # fmt: skip
    """Points on the diagonal stand alike with both models."""
    x, y = (alt.X("first:Q"), alt.Y("second:Q"))
    x = x.title(f"{words[0]}: {goal} minus exact Top-k's").scale(nice=True, zero=False)
    y = y.title(f"{words[1]}: {goal} minus exact Top-k's").scale(nice=True, zero=False)
    line = alt.Chart(alt.NamedData("lines")).mark_line(color=INK, opacity=0.6, strokeDash=[6, 3])
    data = alt.Chart(alt.NamedData("cells"))
    hover = [
        alt.Tooltip("name:N", title="indexer"),
        alt.Tooltip("first:Q", title=words[0], format="+.2f"),
        alt.Tooltip("second:Q", title=words[1], format="+.2f"),
    ]
    dots = data.properties(name="dots").mark_point(size=75, strokeWidth=1.6)
    texts = data.properties(name="names").mark_text(fontSize=10.5)
    layers = [
        line.encode(x, y),
        dots.encode(
            x, y, fillOpacity=alt.FillOpacityValue(0.6), tooltip=hover, **by_family(names, legend)
        ),
        texts.encode(x, y, text=alt.Text("label:N")),
    ]
    return layered(layers).properties(width=WIDTH, height=420)


def rows_of(one: Comparison) -> tuple[list[Row], list[Row]]:
    """A row an indexer, and the ends of the diagonal."""
    first, second = one.found.first.tolist(), one.found.second.tolist()
    rows: list[Row] = []
    for recipe, a, b in zip(one.indexers, first, second, strict=True):
        cell = Cell(recipe)
        name = label_of(cell)
        look = {"name": name, "label": shortened(name), "kind": "real", "family": family(cell)}
        rows.append({**look, "first": round(a, 4), "second": round(b, 4), "front": False})
    ends = min(*first, *second, -0.02), max(*first, *second, 0.02)
    return rows, [{"first": end, "second": end} for end in ends]


def compared_shown(comparisons: Sequence[Comparison], sheet: Sheet) -> list[tuple[str, Shown]]:
    """The figures of the pairs in the page, each with a heading; the pictures of them."""
    made: list[tuple[str, Shown]] = []
    for number, one in enumerate(comparisons):
        rows, lines = rows_of(one)
        names, data = families(rows), {"cells": rows, "lines": lines}
        rank = float(one.found.spearman.value)
        heading = f"Families stand in {_order(rank)} with {one.models[0]} and {one.models[1]} (Spearman {rank:.2f} over {one.found.families} families)"
        name = NAME if number == 0 else f"{NAME}-{number + 1}"
        draw = partial(by_model, names, one.models, one.goal)
        alt_text = f"{len(rows)} indexers with {one.models[0]} and with {one.models[1]}: {heading}."
        sheet.save(name, name, partial(draw, legend=True), data)
        made.append((heading, sheet.show(Shown(name, CAPTION, alt_text), name, draw, data)))
    return made


def _order(rank: float) -> str:
    if rank != rank:
        return "no order that can be told"
    return (
        "much the same order" if rank > 0.7 else "a like order" if rank > 0.3 else "another order"
    )
