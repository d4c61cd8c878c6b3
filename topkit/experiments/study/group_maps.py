"""What exact selection in one KV group changes, as maps: layers down, groups across."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import altair as alt
import numpy as np

from topkit.experiments.study.blocks import Drawn, Panel
from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.drawing import INK, kept_legend
from topkit.experiments.study.heads import Mended
from topkit.experiments.study.kinds import words_of

CAPTION = (
    "Accuracy minus that of the indexer alone, where exact Top-k selects in one KV group and the indexer everywhere "
    "else; framed: shown to differ (McNemar, Holm over all groups, 5 %)."
)
# Of the last map, which is drawn where it is known where the answers stand.
READ = (
    " Last: the mean weight of the answer's key among all keys, which says where it is read (by the queries of exact "
    "Top-k, where it was run)."
)
WIDTH, HEIGHT = 220, 260


# What the data of every map is called in a page, and the maps' colours.
DATA = "groups"
GAIN, WEIGHT = "blueorange", "viridis"


@dataclass(frozen=True)
class _Map:
    """A map: its title, a row a group, its colours between two ends, and what is seen in it."""

    title: str
    rows: Sequence[Row]
    colours: str
    ends: tuple[float, float]
    seen: str


def group_maps(name: str, every: Sequence[Mended], caption: str) -> Drawn:
    """A map an indexer, of one scale, and one of the answer's weight where it is known."""
    maps = list(_maps(every))
    panels = [
        Panel(f"{name}-{n}", f"{name}-{n}", partial(_drawn, one, DATA), {DATA: one.rows}, f"{one.title}. {one.seen}")
        for n, one in enumerate(maps, 1)
    ]  # fmt: skip
    data = {f"{DATA}{n}": one.rows for n, one in enumerate(maps)}

    def draw() -> alt.TopLevelMixin:
        charts = [_drawn(one, f"{DATA}{n}") for n, one in enumerate(maps)]
        return kept_legend(alt.hconcat(*charts).resolve_scale(color="independent"))

    return Drawn(name, draw, data, caption, panels)


def _maps(every: Sequence[Mended]) -> Iterator[_Map]:
    most = max(0.05, *(float(np.nanmax(np.abs(one.gain.value))) for one in every))
    for one in every:
        shown = int(one.shown.sum())
        yield _Map(words_of(one.base), _gains(one), GAIN, (-most, most), f"Shown to differ: {shown} of {len(one.groups)} groups.")  # fmt: skip
    first = every[0]
    if first.reading:
        layer, group = first.groups[first.reading[0]]
        rows = [{"layer": at[0], "group": at[1], "value": round(float(x), 4)} for at, x in zip(first.groups, first.weight, strict=True)]  # fmt: skip
        seen = f"It is largest in layer {layer}, group {group}."
        yield _Map("weight of the answer's key", rows, WEIGHT, (0, float(np.nanmax(first.weight))), seen)  # fmt: skip


def _gains(one: Mended) -> list[Row]:
    gain = one.gain
    values = zip(one.groups, gain.value, gain.low, gain.high, one.shown, strict=True)
    return [
        {"layer": at[0], "group": at[1], "value": round(float(gain), 4), "low": round(float(low), 4),
         "high": round(float(high), 4), "shown": bool(shown)}
        for at, gain, low, high, shown in values
    ]  # fmt: skip


def _drawn(one: _Map, data: str) -> Any:
    low, high = one.ends
    axis = alt.Axis(labelOverlap=True, labelAngle=0, ticks=False, domain=False, grid=False)
    x, y = alt.X("group:O", title="KV group", axis=axis), alt.Y("layer:O", title="layer", axis=axis)
    given: dict[str, Any] = {"domain": [low, high], "scheme": one.colours}
    if low:
        given["domainMid"] = 0
    scale = alt.Scale(**given)
    colour = alt.Color("value:Q", title=None, scale=scale)
    hover = [
        alt.Tooltip("layer:O", title="layer"),
        alt.Tooltip("group:O", title="KV group"),
        alt.Tooltip("value:Q", title="value", format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    base = alt.Chart(alt.NamedData(data))
    cells = base.mark_rect().encode(x, y, color=colour, tooltip=hover)
    frames = base.transform_filter("datum.shown").mark_rect(fill=None, stroke=INK, strokeWidth=2.5)
    whole = alt.layer(cells, frames.encode(x, y)).properties(title=one.title)
    whole = whole.properties(width=WIDTH, height=HEIGHT)
    # Of a map that stands beside others the whole says so.
    return kept_legend(whole) if data == DATA else whole
