"""Numbers beside points, placed so that none covers another number or a point."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from topkit.experiments.study.stats import Array

_RINGS = (9, 13, 18, 24, 31, 40, 50, 62, 76)  # points of distance that are tried in turn
_TURNS = np.radians(np.arange(0, 360, 22.5) + 45)
# Every offset that is tried, and its distance.
_OFFSETS = np.array([[r * np.cos(turn), r * np.sin(turn)] for r in _RINGS for turn in _TURNS])
_DISTANCES = np.repeat(_RINGS, len(_TURNS))
_MARKER = 7.0  # points across
_SHRINK = 3.0  # points between a point and its line
_LEADERS = "leaders"  # the lines to numbers, which a number may cover
_GAP = 2.0  # points between a number and what stands beside it
_PER_POINT, _PER_CROSSING = 0.05, 0.3  # what distance costs, and what covering a line costs


def label(axes: Axes, x: Array, y: Array, texts: Sequence[str]) -> list[Text]:
    """Write each text near its point, a thin line between; the crowded points go first.

    Call it last, at the figure's final size: it looks at what has been drawn.
    """
    figure = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[arg-type]
    unit = figure.dpi / 72
    points = axes.transData.transform(np.column_stack([x, y]))
    lines, inside = _drawn(axes), np.array(axes.get_window_extent(renderer).extents)
    marker = np.array([_MARKER, _MARKER]) * unit
    taken = _around(points, marker)
    notes: list[Text] = []
    for i in _crowded_first(points):
        note = _note(axes, (x[i], y[i]), texts[i])
        drawn = Text.get_window_extent(note, renderer)
        size = np.array([drawn.width, drawn.height]) + 2 * _GAP * unit
        offset = _best(points[i], size, unit, taken, lines, inside)
        note.set_position(tuple(offset))
        taken = np.vstack([taken, _around(points[i] + offset * unit, size)])
        notes.append(note)
    _lead(axes, points[_crowded_first(points)], taken[len(points) :], unit)
    return notes


def _lead(axes: Axes, points: Array, boxes: Array, unit: float) -> None:
    """A thin line from each point, but for its marker, to the edge of its number's box.

    One collection: an arrow a number takes longer to draw than all else.
    """
    if not len(boxes):
        return
    middles, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    way = points - middles
    length = np.hypot(*way.T)[:, None]
    with np.errstate(divide="ignore"):
        edge = (half / np.abs(way)).min(1, keepdims=True)
    begin, end = middles + way * edge, points - way * (_SHRINK * unit / length)
    shown = (edge < 1 - _SHRINK * unit / length)[:, 0]
    back = axes.transData.inverted().transform
    segments = np.stack([back(begin[shown]), back(end[shown])], 1)
    lines = LineCollection(list(segments), gid=_LEADERS, linewidths=0.5, colors="0.4", zorder=6.9)
    axes.add_collection(lines, autolim=False)


def _note(axes: Axes, place: tuple[float, float], text: str) -> Text:
    note = axes.annotate(
        text,
        place,
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=7.5,
        zorder=7,
    )
    note.set_path_effects([withStroke(linewidth=2, foreground="white")])
    return note


def _best(
    point: Array, size: Array, unit: float, taken: Array, lines: Array, inside: Array
) -> Array:
    """The cheapest offset, in points, whose box overlaps no other; far out to the side where there is none.

    taken [n, 4]: boxes as x0, y0, x1, y1, as is `inside`, within which the box stays; lines [m, 2].
    """
    boxes = _around(point + _OFFSETS * unit, size)
    low, high = boxes[:, :2], boxes[:, 2:]
    within = ((low >= inside[:2]) & (high <= inside[2:])).all(1)
    apart = (low[:, None] > taken[:, 2:]) | (high[:, None] < taken[:, :2])
    free = np.flatnonzero(within & apart.any(2).all(-1))
    if not len(free):
        return np.array([_RINGS[-1], 0.0])
    # Of the points of lines those that any box may cover.
    near = ((lines >= low.min(0)) & (lines <= high.max(0))).all(1)
    near_lines = lines[near]
    hits = ((near_lines >= low[free, None]) & (near_lines <= high[free, None])).all(2).sum(1)
    cost = _PER_POINT * _DISTANCES[free] + _PER_CROSSING * hits / size[1]
    return _OFFSETS[free[np.argmin(cost)]]


def _drawn(axes: Axes) -> Array:
    """A point for every pixel or so of each line drawn so far [n, 2]."""
    paths = [np.asarray(line.get_xydata(), dtype=float) for line in axes.get_lines()]
    for collection in axes.collections:
        if isinstance(collection, LineCollection) and collection.get_gid() != _LEADERS:
            paths += [np.asarray(path, dtype=float) for path in collection.get_segments()]
    samples = [np.empty((0, 2))]
    for path in paths:
        pixels = axes.transData.transform(path)
        pixels = pixels[np.isfinite(pixels).all(1)]
        for a, b in pairwise(pixels):
            steps = int(np.clip(np.hypot(*(b - a)), 1, 4000))
            samples.append(a + (b - a) * np.linspace(0, 1, steps)[:, None])
    return np.vstack(samples)


def _crowded_first(points: Array) -> list[int]:
    apart = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    return np.argsort(-(apart < 60).sum(1), kind="stable").tolist()


def _around(middles: Array, size: Array) -> Array:
    """Boxes [n, 4] of a size around some points, as x0, y0, x1, y1."""
    low = np.atleast_2d(middles) - size / 2
    return np.hstack([low, low + size])
