"""The figure of a survey: each trait by layer, a point a group of heads."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
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


def survey_figure(survey: Survey) -> Figure:
    """A panel a trait; the line is the mean over a layer's groups."""
    layers = [row["layer"] for row in survey.by_layer()]
    with matplotlib.rc_context({**_STYLE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        for axes, name in zip(figure.subplots(2, 4).flat, TRAITS, strict=True):
            points = [(row["layer"], row[name]) for row in survey.rows if row[name] is not None]
            line = [(row["layer"], row[name]) for row in survey.by_layer() if row[name] is not None]
            axes.plot(*zip(*line, strict=True), color="#0b4f8a", lw=1.2) if line else None
            axes.plot(*zip(*points, strict=True), "o", color="#b3541e", ms=3, alpha=0.7) if points else None  # fmt: skip
            axes.set_title(_WORDS[name].format(sink=survey.sink), fontsize=8.5, loc="left")
            axes.set_xlabel("layer")
            axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
            if name in ("first_weight", "sink_weight"):
                axes.set_ylim(-0.02, 1.02)
            if name == "support":
                axes.set_yscale("log")
    return figure


@extras_named()
def save_survey_figure(survey: Survey, path: str | Path) -> Path:
    """Write the figure; the file's ending says how: png, svg or pdf.

    Raises: InputError for another ending.
    """
    path = path_of(path, "a figure to write")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"a figure ends in .png, .svg or .pdf; got {path}")
    figure = survey_figure(survey)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=160, metadata=plain)
    return path
