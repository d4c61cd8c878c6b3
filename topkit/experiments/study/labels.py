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
from matplotlib.transforms import Bbox

from topkit.experiments.study.stats import Array

_RINGS = (9, 13, 18, 24, 31, 40, 50, 62, 76)  # points of distance that are tried in turn
_TURNS = np.radians(np.arange(0, 360, 22.5) + 45)
_MARKER = 7.0  # points across
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
    lines = _drawn(axes)
    inside = axes.get_window_extent(renderer)
    boxes = [_around(point, _MARKER * unit, _MARKER * unit) for point in points]
    notes: list[Text] = []
    for i in _crowded_first(points):
        note = _note(axes, (x[i], y[i]), texts[i])
        drawn = Text.get_window_extent(note, renderer)
        width, height = drawn.width + 2 * _GAP * unit, drawn.height + 2 * _GAP * unit
        offset = _best(points[i], width, height, unit, boxes, lines, inside)
        note.set_position(tuple(offset))
        boxes.append(_around(points[i] + offset * unit, width, height))
        notes.append(note)
    return notes


def _note(axes: Axes, place: tuple[float, float], text: str) -> Text:
    note = axes.annotate(
        text,
        place,
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=7.5,
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4", "shrinkA": 0, "shrinkB": 3},
        zorder=7,
    )
    note.set_path_effects([withStroke(linewidth=2, foreground="white")])
    return note


def _best(
    point: Array,
    width: float,
    height: float,
    unit: float,
    boxes: list[Bbox],
    lines: Array,
    inside: Bbox,
) -> Array:
    """The cheapest offset, in points, whose box overlaps no other; far out to the side where there is none."""
    best, least = np.array([_RINGS[-1], 0.0]), np.inf
    for ring in _RINGS:
        for turn in _TURNS:
            offset = ring * np.array([np.cos(turn), np.sin(turn)])
            box = _around(point + offset * unit, width, height)
            if not _within(box, inside) or any(box.overlaps(other) for other in boxes):
                continue
            hits = np.logical_and(lines >= box.min, lines <= box.max).all(1).sum() / height
            cost = _PER_POINT * ring + _PER_CROSSING * hits
            if cost < least:
                best, least = offset, cost
    return best


def _drawn(axes: Axes) -> Array:
    """A point for every pixel or so of each line drawn so far [n, 2]."""
    paths = [np.asarray(line.get_xydata(), dtype=float) for line in axes.get_lines()]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
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


def _around(middle: Array, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(middle[0] - width / 2, middle[1] - height / 2, width, height)


def _within(box: Bbox, outer: Bbox) -> bool:
    return bool(np.all(box.min >= outer.min) and np.all(box.max <= outer.max))
