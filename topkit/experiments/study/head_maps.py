"""(c) Mean recall of each layer and head, a map a real indexer: all in one axes, whose unit is an inch.

An axes a map would take most of the time of a report.
"""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import math
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import STYLE, Entries, shown
from topkit.experiments.study.stats import Array
from topkit.indexers.budget import Budget

COLUMNS, COLOURS = 6, "viridis"
# Of a map, and from one to the next.
_WIDTH, _HEIGHT, _RIGHT, _DOWN = 1.45, 1.35, 1.65, 1.95
_LEFT, _BOTTOM, _TOP, _BAR = 0.55, 0.5, 0.5, 0.95
_TICK = 0.04


def by_head(curve: Curve, budget: Budget, marks: Entries) -> Figure | None:
    """Maps of one scale; None where there is nothing. Layers and heads are numbered at the edge."""
    numbered = shown(curve, budget, marks)
    maps = [
        (e, curve.heads[c]) for p, e in numbered.items() if (c := curve.cells[p]) in curve.heads
    ]
    if not maps:
        return None
    columns = min(len(maps), COLUMNS)
    rows = math.ceil(len(maps) / columns)
    shape = tuple(int(most) for most in np.max([recall.shape for _, recall in maps], axis=0))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = _sheet(columns, rows)
        for place, (entry, recall) in enumerate(maps):
            row, column = divmod(place, columns)
            corner = _LEFT + column * _RIGHT, _BOTTOM + (rows - 1 - row) * _DOWN
            _map(axes, corner, _padded(recall, shape))
            title = fill(entry.name, 26, max_lines=3, placeholder=" …")
            axes.text(corner[0], corner[1] + _HEIGHT + 0.06, title, fontsize=7, va="bottom")
            if column == 0:
                _layers(axes, corner, shape[0])
            if place + columns >= len(maps):
                _heads(axes, corner, shape[1])
        _bar(figure)
    return figure


def _sheet(columns: int, rows: int) -> tuple[Figure, Axes]:
    """A figure and its one axes, in inches."""
    width = _LEFT + columns * _RIGHT + _BAR
    height = _BOTTOM + (rows - 1) * _DOWN + _HEIGHT + _TOP
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure, axes


def _padded(recall: Array, shape: tuple[int, ...]) -> Array:
    """The map in the shape of all; NaN where a layer or head was not judged."""
    whole = np.full(shape, np.nan)
    whole[: recall.shape[0], : recall.shape[1]] = recall
    return whole


def _map(axes: Axes, corner: tuple[float, float], recall: Array) -> None:
    x, y = corner
    limits = axes.get_xlim(), axes.get_ylim()
    extent = (x, x + _WIDTH, y, y + _HEIGHT)
    axes.imshow(recall, vmin=0, vmax=1, cmap=COLOURS, aspect="auto", extent=extent)
    axes.set(xlim=limits[0], ylim=limits[1])
    edges = [[(x, y + _HEIGHT), (x, y), (x + _WIDTH, y)]]
    layers, heads = recall.shape
    edges += [[(x - _TICK, at), (x, at)] for at in _across(y + _HEIGHT, -_HEIGHT, layers)]
    edges += [[(at, y - _TICK), (at, y)] for at in _across(x, _WIDTH, heads)]
    axes.add_collection(LineCollection(edges, colors="black", linewidths=0.8), autolim=False)


def _layers(axes: Axes, corner: tuple[float, float], count: int) -> None:
    x, y = corner
    for number, at in zip(_ticks(count), _across(y + _HEIGHT, -_HEIGHT, count), strict=True):
        axes.text(x - 2 * _TICK, at, str(number), ha="right", va="center")
    axes.text(x - 0.4, y + _HEIGHT / 2, "layer", rotation=90, ha="center", va="center")


def _heads(axes: Axes, corner: tuple[float, float], count: int) -> None:
    x, y = corner
    for number, at in zip(_ticks(count), _across(x, _WIDTH, count), strict=True):
        axes.text(at, y - 2 * _TICK, str(number), ha="center", va="top")
    axes.text(x + _WIDTH / 2, y - 0.25, "query head", ha="center", va="top")


def _across(begin: float, span: float, count: int) -> Array:
    """The middles of those of `count` equal pieces that are numbered."""
    return begin + span * (np.array(_ticks(count)) + 0.5) / count


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, math.ceil(count / 8))))


def _bar(figure: Figure) -> None:
    scale = ScalarMappable(Normalize(0, 1), COLOURS)
    width, height = figure.get_size_inches()
    size = min(0.8 * height, 4.0)
    place = (1 - (_BAR - 0.15) / width, (1 - size / height) / 2, 0.12 / width, size / height)
    figure.colorbar(scale, cax=figure.add_axes(place), label="mean recall")
