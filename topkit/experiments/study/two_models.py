"""The figure of two models: what each indexer scores with the one against what it scores with the other."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from topkit.experiments.study.drawing import Entries, drawing, key, mark
from topkit.experiments.study.labels import label
from topkit.experiments.study.models_compared import Comparison

CAPTION = (
    "Each indexer with two models: what it scores minus what exact Top-k scores at the same budgets. On the "
    "line it stands alike with both. The number is that of the other figures."
)


def by_model(comparisons: Sequence[Comparison], marks: Entries) -> Figure:
    """A panel for each two models: points on the diagonal stand alike with both."""
    columns = len(comparisons)
    shown = {r: marks[r] for one in comparisons for r in one.indexers if r in marks}
    with drawing():
        figure = Figure(figsize=(11, max(4.4, 0.19 * len(shown) + 1.2)))
        grid = figure.subplots(1, columns, squeeze=False)
        figure.subplots_adjust(left=0.07, right=0.68, bottom=0.12, top=0.92, wspace=0.3)
        for axes, one in zip(grid.flat, comparisons, strict=True):
            first, second = one.found.first, one.found.second
            ends = [min(first.min(), second.min(), -0.02), max(first.max(), second.max(), 0.02)]
            margin = 0.06 * (ends[1] - ends[0])
            ends = [ends[0] - margin, ends[1] + margin]
            axes.plot(ends, ends, color="0.5", lw=1, ls=(0, (5, 2)), zorder=1)
            places = [c for c, recipe in enumerate(one.indexers) if recipe in shown]
            for c in places:
                axes.plot(first[c], second[c], **mark(shown[one.indexers[c]]), zorder=5)
            axes.set_xlim(*ends)
            axes.set_ylim(*ends)
            axes.set_xlabel(f"{one.models[0]}: {one.goal} minus exact Top-k's")
            axes.set_ylabel(f"{one.models[1]}: {one.goal} minus exact Top-k's")
            axes.set_title(
                f"Spearman over {one.found.families} families {float(one.found.spearman.value):.2f}"
            )
            numbers = [str(shown[one.indexers[c]].number) for c in places]
            label(axes, np.asarray(first)[places], np.asarray(second)[places], numbers)
        key(figure, [], sorted(shown.values(), key=lambda entry: entry.number))
    return figure
