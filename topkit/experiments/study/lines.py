"""A figure of lines: a value by k or by layer, a line a series, with intervals and levels."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal

import altair as alt

from topkit.experiments.study.blocks import Drawn, Panel
from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.drawing import HEIGHT, WIDTH, kept_legend

# In grey, marks tell series apart.
COLOURS = ("#2f7fc1", "#d0662a", "#1f9d70", "#8e3b7a", "#b08900", "#4d2f8f", "#5b8ac7", "#a0623d")
GREY = "#8a8f98"
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Series:
    """A line: its points (x, y), or (x, y, low, high) with intervals; level: a value that holds at every x.

    of: the series whose colour it has, its own by default; faint: one of many that are only context; dashed: of
    a second kind.
    """

    name: str
    points: Sequence[tuple[float, ...]] = ()
    level: float | None = None
    of: str = ""
    faint: bool = False
    dashed: bool = False


def lines(
    name: str,
    series: Sequence[Series],
    caption: str,
    *,
    x: str,
    y: str,
    scale: Scale = "linear",
    points: bool = False,
) -> Drawn:
    """A block with a figure of lines; x and y: the titles of its axes. points: marks alone, no lines between them."""
    rows = [row for one in series for row in _rows(one)]
    names = [one.name for one in series]
    colours = _colours(series)
    draw = partial(_chart, names, colours, x, y, scale, points)
    data = {"lines": rows}
    alt_text = f"{y} by {x}, of {len(series)} series. {caption}"
    return Drawn(name, draw, data, caption, [Panel(name, name, draw, data, alt_text)])


def _rows(one: Series) -> Iterable[Row]:
    style = {"series": one.name, "faint": one.faint, "dashed": one.dashed}
    if one.level is not None and isfinite(one.level):
        yield {**style, "kind": "level", "y": round(one.level, 4)}
    for place, value, *ends in one.points:
        if isfinite(value):
            row: Row = {**style, "kind": "point", "x": place, "y": round(value, 4)}
            if len(ends) == 2 and all(map(isfinite, ends)):
                row |= {"low": round(ends[0], 4), "high": round(ends[1], 4)}
            yield row


def _colours(series: Sequence[Series]) -> list[str]:
    own: dict[str, str] = {}
    for one in series:
        if not one.faint and (one.of or one.name) not in own:
            own[one.of or one.name] = COLOURS[len(own) % len(COLOURS)]
    return [GREY if one.faint else own[one.of or one.name] for one in series]


def _chart(
    names: Sequence[str], colours: Sequence[str], x: str, y: str, scale: Scale, points: bool
) -> alt.TopLevelMixin:
    base = alt.Chart(alt.NamedData("lines"))
    legend = alt.Legend(title=None, orient="bottom", columns=1, labelLimit=330)
    colour = alt.Color("series:N", sort=None, legend=legend).scale(domain=list(names), range=list(colours))  # fmt: skip
    at = alt.X("x:Q", title=x).scale(type=scale, nice=False, zero=False, padding=12)
    if scale == "linear":
        at = at.axis(tickMinStep=1, format="~g")
    else:
        at = at.axis(labelOverlap=True)
    value = alt.Y("y:Q", title=y).scale(zero=True, nice=True)
    dots = base.transform_filter("datum.kind == 'point'")
    level = base.transform_filter("datum.kind == 'level'").mark_rule(strokeDash=[6, 3], opacity=0.8)
    bars = dots.transform_filter("isValid(datum.low)").mark_rule(opacity=0.45)
    hover = [
        alt.Tooltip("series:N", title="of"),
        alt.Tooltip("x:Q", title=x, format=".4~g"),
        alt.Tooltip("y:Q", title=y, format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    marks = dots.properties(name="dots").mark_point(size=34, filled=False, strokeWidth=1.4)
    shapes = [SHAPES[n % len(SHAPES)] for n in range(len(names))]
    shape = alt.Shape("series:N", sort=None, legend=legend).scale(domain=list(names), range=shapes)
    faint = alt.condition("datum.faint", alt.value(0.55), alt.value(0.95))
    dash = alt.condition("datum.dashed", alt.value([2, 3]), alt.value([1, 0]))
    drawn = [
        level.encode(y=value, color=colour),
        bars.encode(at, alt.Y("low:Q"), alt.Y2("high:Q"), color=colour),
        *([] if points else [
            dots.mark_line(strokeWidth=1.5).encode(
                at, value, color=colour, opacity=faint, strokeDash=dash, order=alt.Order("x:Q")
            )
        ]),
        marks.encode(at, value, color=colour, shape=shape, opacity=faint, tooltip=hover),
    ]  # fmt: skip
    return kept_legend(alt.layer(*drawn)).properties(width=WIDTH, height=HEIGHT)
