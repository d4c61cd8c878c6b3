"""Every recipe's accuracy against the keys that it kept."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from topkit.experiments.study.drawing import HEIGHT, INK, by_family, layered
from topkit.experiments.study.figures import hover, whole

_KEPT = "isValid(datum.kept) && datum.kept > 0 && datum.kind != 'dense'"
# A manner of loss is drawn where it was run at several budgets; at one it is drawn against fidelity.
_RECIPES = f"{_KEPT} && (datum.kind != 'design' || datum.several)"


def by_budget(names: Sequence[str], legend: bool = False) -> alt.LayerChart:
    """A line a recipe through its budgets, named at its end; exact Top-k in ink, full attention level."""
    return whole(_layers(names, legend, alt.Chart(alt.NamedData("cells"))))


def by_budget_all(names: Sequence[str]) -> alt.FacetChart:
    """A panel a setting."""
    chart = layered(_layers(names, True, alt.Chart())).properties(width=400, height=HEIGHT)
    panel = alt.Facet("setting:N", sort=None, title=None)
    return chart.facet(panel, columns=2, data=alt.NamedData("cells"))


def _layers(names: Sequence[str], legend: bool, base: alt.Chart) -> list[alt.Chart]:
    x = alt.X("kept:Q", title="keys kept, k (by each head)").scale(type="log", base=2, nice=False)
    y = alt.Y("accuracy:Q", title="accuracy").scale(domain=[0, 1], nice=False)
    every = base.transform_filter(_RECIPES)
    dense = base.transform_filter("datum.kind == 'dense'")
    look = by_family(names, legend)
    lines = every.mark_line(strokeWidth=1.1, opacity=0.75).encode(
        x,
        y,
        detail=[alt.Detail("name:N"), alt.Detail("manner:N")],
        stroke=look["stroke"],
        order=alt.Order("kept:Q"),
    )
    marks = every.properties(name="dots").mark_point(size=45, strokeWidth=1.3)
    # Where each line ends; of a recipe that ran once, where it stands.
    ends = every.transform_filter("datum.last").properties(name="names")
    return [
        dense.mark_rect(color=INK, opacity=0.08).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
        dense.mark_rule(color=INK, strokeDash=[6, 3], opacity=0.7).encode(y=y),
        every.mark_rule(color=INK, opacity=0.22).encode(x, alt.Y("low:Q"), alt.Y2("high:Q")),
        lines,
        marks.encode(x, y, fillOpacity=alt.FillOpacityValue(0.6), tooltip=hover(), **look),
        ends.mark_text(fontSize=10.5).encode(x, y, text=alt.Text("label:N")),
    ]
