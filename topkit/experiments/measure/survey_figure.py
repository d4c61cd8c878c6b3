"""The figure of surveys: each trait by layer, a point a group of heads."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkit.documents import path_of
from topkit.errors import InputError, extras_named
from topkit.experiments.measure.survey import TRAITS, Survey

_WORDS = {
    "first_weight": "weight on slot 0",
    "sink_weight": "weight on the first {sink} slots",
    "entropy": "entropy of a row, nats",
    "support": "effective support, keys",
    "offset": "offset: |mean key| over spread",
    "outliers": "channel outliers: RMS, max over median",
    "outliers_centred": "channel outliers of centred keys",
    "sink_cosine": "cosine of slot 0 with the mean key",
}
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.grid": True,
    "grid.color": "0.9",
    "svg.hashsalt": "topkit",
}


# Of each capture: ink, the points' marker, the line's dash; a capture alone has points of another ink.
_INKS: tuple[tuple[str, str, Any], ...] = (
    ("#0b4f8a", "o", "-"),
    ("#b3541e", "s", (0, (5, 2))),
    ("#1b7f5c", "^", (0, (1, 1.5))),
)
_POINTS = "#b3541e"


def survey_figure(surveys: Survey | Mapping[str, Survey]) -> Figure:
    """A panel a trait; a line is the mean over a layer's groups.

    Several captures, by name, share the panels: each over the depth of its own model.
    """
    named = {"": surveys} if isinstance(surveys, Survey) else surveys
    deep = len(named) > 1
    with matplotlib.rc_context({**_STYLE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 5.3 if deep else 5), layout="constrained")
        panels = dict(zip(TRAITS, figure.subplots(2, 4).flat, strict=True))
        for number, (name, survey) in enumerate(named.items()):
            for trait, axes in panels.items():
                _draw(axes, survey, trait, number, name, deep)
        sinks = ", ".join(dict.fromkeys(str(survey.sink) for survey in named.values()))
        for trait, axes in panels.items():
            axes.set_title(_WORDS[trait].format(sink=sinks), fontsize=8.5, loc="left")
            axes.set_xlabel("depth: layer over the last" if deep else "layer")
            if trait in ("first_weight", "sink_weight"):
                axes.set_ylim(-0.02, 1.02)
            if trait == "support":
                axes.set_yscale("log")
        _alike(panels["outliers"], panels["outliers_centred"])
        if deep:
            handles = panels["entropy"].get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper center", ncols=len(named), frameon=False)
    return figure


def _draw(axes: Axes, survey: Survey, trait: str, number: int, name: str, deep: bool) -> None:
    """The points and the line of one capture in one panel."""
    ink, marker, dash = _INKS[number % len(_INKS)]
    # Layers without a value have no point, but a place.
    last = max(max(row["layer"] for row in survey.rows), 1) if deep else 1
    places = [[(row["layer"] / last, row[trait]) for row in rows if row[trait] is not None]
              for rows in (survey.by_layer(), survey.rows)]  # fmt: skip
    line, points = places
    if line:
        axes.plot(*zip(*line, strict=True), color=ink, lw=1.2, ls=dash, label=name)
        axes.plot(
            *zip(*points, strict=True), marker, color=ink if deep else _POINTS, ms=3, alpha=0.5
        )
    layers = [row["layer"] for row in survey.rows]
    axes.set_xlim(*((-0.03, 1.03) if deep else (min(layers) - 0.5, max(layers) + 0.5)))


def _alike(one: Axes, other: Axes) -> None:
    """One scale for two panels that are compared."""
    top = max(one.get_ylim()[1], other.get_ylim()[1])
    for axes in (one, other):
        axes.set_ylim(0, top)


@extras_named()
def save_survey_figure(surveys: Survey | Mapping[str, Survey], path: str | Path) -> Path:
    """Write the figure; the file's ending says how: png, svg or pdf.

    Raises: InputError for another ending.
    """
    path = path_of(path, "a figure to write")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"a figure ends in .png, .svg or .pdf; got {path}")
    figure = survey_figure(surveys)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=160, metadata=plain)
    return path
