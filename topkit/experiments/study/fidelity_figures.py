"""The figures of a measurement and of a comparison: fidelity by layer, and by k."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from topkit.experiments.study.drawing import HEIGHT, WIDTH, by_family

# What is drawn, in words.
WORDS = {
    "recall": "recall: share of the exact Top-k kept",
    "mass": "mass: attention weight kept",
    "own": "recall: share of the baseline's list kept",
    "lost": "mass lost",
}
_HOVER = {
    "name": ("indexer", ""),
    "budget": ("k", ""),
    "layer": ("layer", ""),
    "recall": ("recall", ".4f"),
    "mass": ("mass", ".4f"),
    "own": ("recall", ".4f"),
    "lost": ("mass lost", ".4f"),
}


def by_layer(names: Sequence[str], metric: str) -> alt.LayerChart:
    """A line an indexer through its layers, named at the last."""
    x = alt.X("layer:Q", title="layer").scale(nice=False).axis(tickMinStep=1, format="d")
    return _lines(names, x, "layer:Q", metric, ["name:N", "budget:N"])


def by_k(names: Sequence[str], metric: str) -> alt.LayerChart:
    """A line an indexer through its budgets, named at the largest."""
    x = alt.X("kept:Q", title="keys kept, k").scale(type="log", base=2, nice=False)
    return _lines(names, x, "kept:Q", metric, ["name:N"])


def _lines(
    names: Sequence[str], x: alt.X, order: str, metric: str, line: list[str]
) -> alt.LayerChart:
    data = alt.Chart(alt.NamedData("cells")).transform_filter(f"isValid(datum.{metric})")
    scale = alt.Scale(nice=False) if metric == "lost" else alt.Scale(nice=False, domain=[0, 1])
    y = alt.Y(f"{metric}:Q", title=WORDS[metric], scale=scale)
    look = by_family(names, legend=False)
    shown = [_tooltip(name, title, form) for name, (title, form) in _HOVER.items()]
    lines = data.mark_line(strokeWidth=1.1, opacity=0.75)
    ends = data.transform_filter("datum.last").properties(name="names")
    dots = data.properties(name="dots").mark_point(size=45, strokeWidth=1.3)
    layers = (
        lines.encode(
            x,
            y,
            detail=[alt.Detail(one) for one in line],
            stroke=look["stroke"],
            order=alt.Order(order),
        ),
        dots.encode(x, y, fillOpacity=alt.FillOpacityValue(0.6), tooltip=shown, **look),
        ends.mark_text(fontSize=10.5).encode(x, y, text=alt.Text("label:N")),
    )
    return alt.LayerChart(layer=list(layers)).properties(width=WIDTH, height=HEIGHT)


def _tooltip(name: str, title: str, form: str) -> alt.Tooltip:
    if form:
        return alt.Tooltip(f"{name}:Q", title=title, format=form)
    return alt.Tooltip(f"{name}:N", title=title)
