"""What exact selection in one KV group changes, as maps: layers down, groups across."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from topkit.experiments.study.drawing import STYLE
from topkit.experiments.study.heads import Mended
from topkit.experiments.study.kinds import words_of
from topkit.experiments.study.stats import Array

CAPTION = (
    "Accuracy minus that of the indexer alone, where exact Top-k selects in one KV group and the indexer everywhere "
    "else; framed: shown to differ (McNemar, Holm over all groups, 5 %). Grey: nothing is selected there. Last: the "
    "mean weight that full attention gives to the answer's key, which says where it is read."
)


def group_maps(every: Sequence[Mended]) -> Figure:
    """A map an indexer, of one scale, and one of the answer's weight where it is known."""
    most = max(0.05, *(float(np.nanmax(np.abs(one.gain.value))) for one in every))
    known = bool(every[0].reading)
    grids = [one.grid(one.gain.value) for one in every]
    rows = max(len(grid) for grid in grids)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        panels = len(every) + known
        figure = Figure(figsize=(2.1 * panels + 0.9, 0.9 + 0.22 * rows), layout="constrained")
        axes: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
        gains = [_map(ax, grid, words_of(one.base), "RdBu_r", -most, most) for ax, one, grid in zip(axes, every, grids, strict=False)]  # fmt: skip
        for ax, one in zip(axes, every, strict=False):
            for layer, group in (one.groups[n] for n in np.flatnonzero(one.shown)):
                frame = Rectangle((group - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="black")
                frame.set_linewidth(1.8)
                ax.add_patch(frame)
        figure.colorbar(gains[-1], ax=axes[: len(every)], label="change of accuracy", shrink=0.8)
        if known:
            weights = every[0].grid(every[0].weight)
            drawn = _map(axes[-1], weights, "weight of the\nanswer's key", "viridis", 0, None)
            figure.colorbar(drawn, ax=axes[-1], label="mean over heads", shrink=0.8)
        axes[0].set_ylabel("layer")
    return figure


def _map(ax: Axes, grid: Array, title: str, colours: str, low: float, high: float | None) -> Any:
    ax.set_facecolor("#bbbbbb")
    drawn = ax.imshow(grid, vmin=low, vmax=high, cmap=colours, aspect="auto", interpolation="none")
    ax.set_title(title, fontsize=8)
    ax.set_xlabel("KV group")
    ax.set_xticks(range(grid.shape[1]))
    ax.set_yticks(range(0, len(grid), max(1, len(grid) // 8)))
    return drawn
