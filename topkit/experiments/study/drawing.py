"""What the figures share: the mark of each family, their look, names beside points, and compiling them.

A chart is Altair's; it names its data (`cells`, `lines`) and a budget, which are filled in where it is shown,
so that a page holds each kind of figure once. What is drawn in `currentColor` is ink, light or dark.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import altair as alt
import vl_convert as vlc

from topkit.experiments.study.cell_rows import Row

Spec = dict[str, Any]
_OWN_LEGEND = {"legend": "own"}
INK = "currentColor"
# Of each family a shape, a path within -1..1, and a colour; in grey its shape and the names tell it.
_CIRCLE, _SQUARE = "M.9 0A.9.9 0 1 1-.9 0A.9.9 0 1 1 .9 0Z", "M-.8-.8H.8V.8H-.8Z"
MARKS = {
    "exact": (_CIRCLE, INK),
    "quantized": (_SQUARE, "#2f7fc1"),
    "pages": ("M0-1.1L.85 0L0 1.1L-.85 0Z", "#d0662a"),
    "window": ("M0 .9L1-.8H-1Z", "#8a8f98"),
    "control": ("M-.8-.8L.8 .8M-.8 .8L.8-.8", "#8a8f98"),
    "ann": ("M-1-.35H-.35V-1H.35V-.35H1V.35H.35V1H-.35V.35H-1Z", "#1f9d70"),
    "adaptive": ("M0-.9L1 .8H-1Z", "#b565a7"),
    "sampling": ("M-1-.1L0-1L1-.1L.6 .9L-.6 .9Z", "#a8871b"),
    "trained": ("M0-1.1L.3-.3L1.1 0L.3 .3L0 1.1L-.3 .3L-1.1 0L-.3-.3Z", "#7b61d9"),
    "combinator": (_CIRCLE, "#9aa0a6"),
    "channels": ("M-.9 0L.8-1V1Z", "#2a9d8f"),
    "clusters": ("M.9 0L-.8-1V1Z", "#d1495b"),
    "codes": ("M-.9-.5L0-1L.9-.5V.5L0 1L-.9 .5Z", "#5b8ac7"),
    "hashing": ("M-.45-1H.45V1H-.45Z", "#a0623d"),
    "votes": ("M-1-.45H1V.45H-1Z", "#708238"),
    "layers": ("M-.9-.9H.9L0 0L.9 .9H-.9L0 0Z", "#c98a54"),
    "steps": ("M-.9-.9L0 0L-.9 .9V-.9M.9-.9L0 0L.9 .9Z", "#9d4edd"),
}
OTHER = (_CIRCLE, "#7d828a")
CONFIG: Spec = {
    "background": "white",
    "aria": False,
    "font": "system-ui, 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": INK, "tickColor": INK, "domainColor": INK, "gridColor": INK,
        "gridOpacity": 0.12, "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal",
        "titlePadding": 8, "labelFlush": False,
    },
    "title": {"color": INK, "anchor": "start", "fontSize": 12, "fontWeight": "normal"},
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "symbolStrokeWidth": 1.5},
    "text": {"color": INK},
    "header": {"labelColor": INK, "titleColor": INK},
}  # fmt: skip
WIDTH, HEIGHT = 520, 330
# Where a name may stand beside its point, the first that is free.
_ANCHORS = ["right", "left", "top", "bottom", "top-right", "bottom-right", "top-left", "bottom-left"]  # fmt: skip


def mark_of(family: str) -> tuple[str, str]:
    """A family's shape and colour."""
    return MARKS.get(family, OTHER)


def families(rows: Sequence[Row]) -> list[str]:
    """The families of rows that have marks of their own, in the order of the marks."""
    there = {row["family"] for row in rows if row["kind"] not in ("dense", "design")}
    known = [name for name in MARKS if name in there]
    return known + sorted(there - set(known))


def by_family(names: Sequence[str], legend: bool) -> dict[str, Any]:
    """Shape, outline and filling by family, as encodings; one legend for all three."""
    shapes, colours = zip(*map(mark_of, names), strict=True) if names else ((), ())
    key = alt.Legend(title=None) if legend else None
    return {
        "shape": alt.Shape("family:N", legend=key).scale(domain=list(names), range=list(shapes)),
        "stroke": alt.Stroke("family:N", legend=key).scale(domain=list(names), range=list(colours)),
        "fill": alt.Fill("family:N", legend=None).scale(domain=list(names), range=list(colours)),
    }


def layered(charts: Sequence[alt.Chart]) -> alt.LayerChart:
    """Charts upon one another, the last on top."""
    made: Any = alt.layer(*charts)
    return made


def compiled(chart: alt.TopLevelMixin) -> Spec:
    """A chart as Vega, names placed where they cover nothing."""
    # Altair's own check of a chart takes longer than all else; tests draw every kind.
    spec = {**chart.to_dict(validate=False), "config": CONFIG}
    made: Spec = vlc.vegalite_to_vega(spec)
    for group in _groups(made):
        for mark in group.get("marks", ()):
            if mark["type"] == "text" and "names" in mark["name"].split("_"):
                mark["transform"] = [_placing(group)]
    return made


def _groups(spec: Spec) -> Iterator[Spec]:
    """A specification, and the groups of marks in it."""
    yield spec
    for mark in spec.get("marks", ()):
        if mark["type"] == "group":
            yield from _groups(mark)


def _placing(group: Spec) -> Spec:
    """Vega's placing of labels in a group: those of the front first, the most accurate on top; what finds no place is left out."""
    update = group.get("encode", {}).get("update", {})
    size = [update.get(side, {}).get("signal", side) for side in ("width", "height")]
    return {
        "type": "label",
        "size": {"signal": f"[{', '.join(size)}]"},
        "anchor": _ANCHORS,
        "offset": [7],
        "padding": 0,
        "sort": {"field": ["datum.front", "datum.accuracy"], "order": ["descending", "descending"]},
    }


def filled(spec: Spec, data: Mapping[str, Sequence[Row]], budget: str = "") -> Spec:
    """A compiled chart with its rows and its budget, as it is drawn."""
    whole = deepcopy(spec)
    for source in whole["data"]:
        if source["name"] in data:
            source["values"] = list(data[source["name"]])
    for signal in whole.get("signals", ()):
        if signal["name"] == "budget":
            signal["value"] = budget
    return whole


def kept_legend(chart: Any) -> Any:
    """A chart whose legend stands in the page too, where the marks are not those of families."""
    return chart.properties(usermeta=_OWN_LEGEND)


def bare(spec: Spec) -> Spec:
    """A compiled chart as a page shows it: without ground, and without the legend of families, which the page has."""
    lean = {**spec, "background": None}
    if spec.get("usermeta") != _OWN_LEGEND:
        lean.pop("legends", None)
    return lean
