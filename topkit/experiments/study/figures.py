"""The figures of a curve at one budget: a gain against what choosing reads, accuracy against fidelity."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from topkit.experiments.study.drawing import HEIGHT, INK, WIDTH, by_family, layered
from topkit.experiments.study.sentences import FLOOR, UNDECIDED, WORSE

# What accuracy is drawn against, in words.
WORDS = {
    "recall": "recall: share of the exact Top-k kept",
    "mass": "mass: attention weight kept",
    "ws": "answer-key weight after selection",
    "share": "bytes read to choose keys, over exact Top-k's",
}
GAINS = {
    "accuracy": "accuracy",
    "nll_gap": "NLL minus full attention's, nats a token",
    "kl": "KL from full attention, nats a token",
    "recall": WORDS["recall"],
    "mass": WORDS["mass"],
}
_ENDS = {"accuracy": ("low", "high"), "nll_gap": ("nll_low", "nll_high")}
_TICKS = [0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
_HOVER = {
    "name": ("indexer", ""),
    "budget": ("k", ""),
    "accuracy": ("accuracy", ".2f"),
    "low": ("from", ".2f"),
    "high": ("to", ".2f"),
    "gap": ("minus exact Top-k", "+.3f"),
    "verdict": ("verdict", ""),
    "recall": ("recall", ".3f"),
    "mass": ("mass", ".3f"),
    "ws": ("answer-key weight", ".3f"),
    "share": ("bytes over exact Top-k's", ".3f"),
    "kib": ("KiB read, a step and layer", ".1f"),
    "nll_gap": ("NLL minus full attention", "+.3f"),
    "kl": ("KL", ".3f"),
}
_AT = "datum.budget == budget"
_SHOWN = f"{_AT} && indexof(['real', 'control', 'oracle', 'exact'], datum.kind) >= 0"


def by_cost(names: Sequence[str], gain: str = "accuracy", legend: bool = False) -> alt.LayerChart:
    """A gain against the share of bytes that choosing reads; of accuracy with the front and the margin."""
    x = alt.X("share:Q", title=WORDS["share"]).scale(type="symlog", constant=0.02, nice=False)
    x = x.axis(values=_TICKS, format="~g")
    under = [*rules("exact", "margin"), _front(x)] if gain == "accuracy" else []
    return whole([*under, *points(x, "share", gain, names, legend)])


def by_fidelity(names: Sequence[str], metric: str, legend: bool = False) -> alt.LayerChart:
    """Accuracy against a metric: oracles as lines, real indexers as points, what chance leaves dotted."""
    x = alt.X(f"{metric}:Q", title=WORDS[metric]).scale(zero=True, nice=False)
    x = x.axis(tickCount=6)
    null = alt.Chart(alt.NamedData("lines")).transform_filter(f"datum.line == 'null {metric}'")
    dotted = null.mark_line(color=INK, strokeDash=[1, 3], strokeWidth=1.4).encode(
        x=alt.X("x:Q"), y=alt.Y("y:Q")
    )
    layers = [*rules("dense"), dotted, *_oracles(x, metric, legend)]
    return whole([*layers, *points(x, metric, "accuracy", names, legend)])


def whole(layers: Sequence[alt.Chart]) -> alt.LayerChart:
    """Layers as one figure, of the budget that is filled in."""
    budget = alt.param(name="budget", value="")
    return layered(layers).add_params(budget).properties(width=WIDTH, height=HEIGHT)


def rules(*lines: str) -> list[alt.Chart]:
    """Level lines across a figure, named at their left end: of exact Top-k, its margin, full attention."""
    wanted = " || ".join(f"datum.line == '{line}'" for line in lines)
    data = alt.Chart(alt.NamedData("lines")).transform_filter(f"({wanted}) && {_AT}")
    y, dash = alt.Y("y:Q"), alt.StrokeDash("line:N", legend=None)
    dash = dash.scale(domain=["exact", "margin", "dense"], range=[[1, 0], [2, 3], [6, 3]])
    words = data.properties(name="rulenames").mark_text(align="left", dx=3, dy=-6, fontSize=10.5)
    return [
        data.mark_rule(color=INK, opacity=0.7).encode(y=y, strokeDash=dash),
        words.encode(x=alt.XValue(0), y=y, text=alt.Text("words:N")),
    ]


def points(x: Any, across: str, gain: str, names: Sequence[str], legend: bool) -> list[alt.Chart]:
    """Intervals, marks and names of the cells at the budget: filled as good as exact Top-k, hollow worse."""
    data = alt.Chart(alt.NamedData("cells")).transform_filter(
        f"{_SHOWN} && isValid(datum.{across}) && isValid(datum.{gain})"
    )
    scale: dict[str, Any] = (
        {"domain": [0, 1]} if gain in ("accuracy", "recall") else {"zero": gain == "mass"}
    )
    y = alt.Y(f"{gain}:Q", title=GAINS[gain], scale=alt.Scale(nice=False, **scale)).axis(
        tickCount=7
    )
    marks = data.properties(name="dots").mark_point(size=75, strokeWidth=1.6)
    words = data.properties(name="names").mark_text(fontSize=10.5)
    drawn = [
        marks.encode(x, y, **by_family(names, legend), fillOpacity=_filling(), tooltip=hover()),
        words.encode(x, y, text=alt.Text("label:N")),
    ]
    if gain in _ENDS:
        low, high = _ENDS[gain]
        bars = data.mark_rule(color=INK, opacity=0.3)
        drawn.insert(0, bars.encode(x, alt.Y(f"{low}:Q"), alt.Y2(f"{high}:Q")))
    return drawn


def hover() -> list[alt.Tooltip]:
    """What hovering over a cell shows."""
    forms: dict[str, dict[str, Any]] = {name: {"format": f} for name, (_, f) in _HOVER.items() if f}
    return [
        alt.Tooltip(f"{name}:{'Q' if form else 'N'}", title=title, **forms.get(name, {}))
        for name, (title, form) in _HOVER.items()
    ]


def _filling() -> Any:
    open_ = f"datum.verdict == '{UNDECIDED}' || datum.verdict == '{FLOOR}'"
    when = alt.when(f"datum.verdict == '{WORSE}'").then(alt.value(0))
    return when.when(open_).then(alt.value(0.3)).otherwise(alt.value(0.95))


def _front(x: Any) -> alt.Chart:
    data = alt.Chart(alt.NamedData("cells")).transform_filter(f"{_AT} && datum.front")
    line = data.mark_line(color=INK, opacity=0.6, strokeWidth=1.2, interpolate="step-after")
    return line.encode(x, y=alt.Y("accuracy:Q"), order=alt.Order("share:Q"))


def _oracles(x: Any, metric: str, legend: bool) -> list[alt.Chart]:
    """Oracles that lose keys: a dash a manner of loss."""
    data = alt.Chart(alt.NamedData("cells")).transform_filter(
        f"{_AT} && datum.kind == 'design' && isValid(datum.{metric})"
    )
    key = alt.Legend(title=None, orient="bottom", columns=1, labelLimit=420) if legend else None
    dash = alt.StrokeDash("manner:N", legend=key)
    line = data.mark_line(color=INK, opacity=0.5, strokeWidth=1.2)
    dots = data.mark_point(color=INK, opacity=0.5, size=16)
    return [
        line.encode(x, y=alt.Y("accuracy:Q"), strokeDash=dash, order=alt.Order(f"{metric}:Q")),
        dots.encode(x, y=alt.Y("accuracy:Q"), tooltip=hover()),
    ]
