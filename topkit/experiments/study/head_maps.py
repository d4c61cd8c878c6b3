"""Recall by layer and head: a map a real indexer, ordered by family, with what is seen in each."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import altair as alt
import numpy as np

from topkit.experiments.study.cell_rows import Row, family, label_of, shortened
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import MARKS
from topkit.experiments.study.stats import Array
from topkit.indexers.budget import Budget

# Maps of a picture; the page has all.
MOST = 24
# A head that loses so much of its keys is named.
LOW = 0.5
_HOVER = [
    alt.Tooltip("layer:O", title="layer"),
    alt.Tooltip("head:O", title="query head"),
    alt.Tooltip("recall:Q", title="recall", format=".2f"),
]


@dataclass(frozen=True)
class HeadMap:
    """An indexer's mean recall [layers, heads], NaN where nothing was judged."""

    name: str
    family: str
    recall: Array

    @property
    def rows(self) -> list[Row]:
        """A row a layer and head that was judged."""
        return [
            {
                "name": shortened(self.name, 24),
                "layer": layer,
                "head": head,
                "recall": round(float(value), 2),
            }
            for (layer, head), value in np.ndenumerate(self.recall)
            if np.isfinite(value)
        ]

    @cached_property
    def takeaway(self) -> str:
        """Its mean, its weakest layer, and how many heads lose half of their keys."""
        judged = np.isfinite(self.recall)
        sums, counts = np.where(judged, self.recall, 0).sum(1), judged.sum(1)
        layers = np.divide(sums, counts, out=np.full(len(sums), np.inf), where=counts > 0)
        layer = int(layers.argmin())
        low = int((self.recall[judged] < LOW).sum())
        heads = f"{low} of {judged.sum()} heads below {LOW:g}" if low else f"no head below {LOW:g}"
        mean = sums.sum() / counts.sum()
        return f"mean {mean:.2f}; layer {layer} lowest, {layers[layer]:.2f}; {heads}"


def head_maps(curve: Curve, budget: Budget) -> list[HeadMap]:
    """The maps of the indexers at a budget, by family, the best first in each."""
    places = curve.where("real", "control", budget=budget)
    cells = [curve.cells[place] for place in places if curve.cells[place] in curve.heads]
    made = [HeadMap(label_of(cell), family(cell), curve.heads[cell]) for cell in cells]
    there = [one for one in made if np.isfinite(one.recall).any()]
    order = list(MARKS)
    return sorted(
        there,
        key=lambda one: (
            order.index(one.family) if one.family in MARKS else len(order),
            one.family,
            -float(np.nanmean(one.recall)),
        ),
    )


def weakest(maps: Sequence[HeadMap]) -> str:
    """Which layer loses most over all indexers, as a heading."""
    shape = tuple(np.max([one.recall.shape for one in maps], axis=0))
    whole = np.full((len(maps), *shape), np.nan)
    for n, one in enumerate(maps):
        whole[n, : one.recall.shape[0], : one.recall.shape[1]] = one.recall
    judged = np.isfinite(whole)
    sums, counts = np.where(judged, whole, 0).sum((0, 2)), judged.sum((0, 2))
    layers = np.divide(sums, counts, out=np.full(shape[0], np.nan), where=counts > 0)
    lowest, highest = int(np.nanargmin(layers)), int(np.nanargmax(layers))
    if lowest == highest:
        return f"Recall by head: {layers[lowest]:.2f} on average"
    return (
        f"Layer {lowest} loses most of its keys (recall {layers[lowest]:.2f} on average), "
        f"layer {highest} the fewest ({layers[highest]:.2f})"
    )


def one_map() -> alt.Chart:
    """A map alone."""
    return _map(alt.Chart(alt.NamedData("cells"))).properties(width=180, height=130)


def all_maps() -> alt.FacetChart:
    """All maps of a picture, on one scale."""
    chart = _map(alt.Chart(), legend=True).properties(width=120, height=105)
    by_name = alt.Facet("name:N", sort=None, title=None, header=alt.Header(labelLimit=0, labelFontSize=9))  # fmt: skip
    return chart.facet(by_name, columns=6, data=alt.NamedData("cells"))


def _map(chart: alt.Chart, legend: bool = False) -> alt.Chart:
    key = alt.Legend(title="recall", orient="right") if legend else None
    axis = alt.Axis(labelOverlap=True, labelAngle=0, ticks=False, domain=False, titlePadding=2, grid=False)  # fmt: skip
    return chart.mark_rect().encode(
        alt.X("head:O", title="query head", axis=axis),
        alt.Y("layer:O", title="layer", axis=axis),
        color=alt.Color("recall:Q", legend=key).scale(domain=[0, 1], scheme="viridis"),
        tooltip=_HOVER,
    )
